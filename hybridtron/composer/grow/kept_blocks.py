"""The blocks of a small model at the width of a large one: types and options stay, sizes follow the width."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hybridtron.composer.nas.config import MADConfig, SearchConfig, ShortRunConfig
from hybridtron.config.compose import compose
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mad.models.layers import map_mixers
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import SmallWidth
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig, without_dropped

Source = str | os.PathLike[str] | Mapping[str, Any]
_STEP = 16  # feed-forward widths are multiples of it


def with_blocks_of(source: Source, target: ModelConfig) -> ModelConfig:
    """Return the target with the blocks of a small model in place of its own, and a pattern of one of each.

    A key that follows the width (`Facts.at_small_width`) is that of the target's block of the same type; where there is
    none, feed-forward widths and the number of heads grow in proportion. Grouped heads keep their ratio to the heads as
    nearly as it divides.

    Raises UserError for a source without blocks, and for blocks that cannot have the target's width.
    """
    try:
        small = _model_of(source)
        peers = {mixer.type: mixer for block in target.blocks.values() for mixer in block.mixers}
        factor = target.hidden_size / small.hidden_size
        blocks = {
            name: map_mixers(block.model_dump(), lambda mixer: _widened(mixer, factor, peers))
            for name, block in small.blocks.items()
        }
        return build(
            target.model_dump(serialize_as_any=True) | {"blocks": blocks, "pattern": " ".join(blocks)}, ModelConfig
        )
    except UserError as error:
        shown = "dict" if isinstance(source, Mapping) else os.fspath(source)
        raise UserError(f"keep_blocks {shown}: {error}") from None


def _model_of(source: Source) -> ModelConfig:
    """Read the model whose blocks a run's or a search's config has; `source` may be a run folder."""
    if not isinstance(source, Mapping) and Path(source).is_dir():
        source = Path(source) / "config.yaml"
    composed = compose(source)
    section = composed.mapping.get("model")
    if "evaluator" in composed.mapping:
        evaluator = build(composed.mapping, SearchConfig, composed.provenance).evaluator
        if isinstance(evaluator, ShortRunConfig):
            section = compose(evaluator.run, evaluator.overrides).mapping.get("model")
        elif isinstance(evaluator, MADConfig):
            section = {"hidden_size": evaluator.hidden_size, "blocks": evaluator.blocks}
    if not isinstance(section, dict) or not isinstance(section.get("blocks"), dict):
        raise UserError("has no blocks; expected the config of a run, or of a search of type train or mad")
    return build({"pattern": " ".join(without_dropped(section["blocks"])), **section}, ModelConfig)


def _widened(mixer: dict[str, Any], factor: float, peers: Mapping[str, MixerConfig]) -> dict[str, Any]:
    """Return one mixer with every key that follows the width changed; `mixer` holds all keys of its type."""
    wider, peer = dict(mixer), peers.get(mixer["type"])
    facts = {key: fact.at_small_width for key, fact in MIXERS[mixer["type"]].facts().items() if fact.at_small_width}
    for key in (key for key, rule in facts.items() if rule != "grouped_heads"):
        if peer is not None:
            wider[key] = getattr(peer, key)
        elif mixer[key]:
            wider[key] = _RULES[facts[key]](mixer[key], factor)
    for key in (key for key, rule in facts.items() if rule == "grouped_heads" and mixer[key]):
        wider[key] = _grouped_heads(mixer[key] / mixer["num_heads"], wider["num_heads"])
    return wider


def _grouped_heads(ratio: float, heads: int) -> int:
    """Return `ratio` times the heads: a multiple of them, or a divisor of them, rounded down to one."""
    if ratio >= 1:
        return heads * round(ratio)
    return max(count for count in range(1, heads + 1) if heads % count == 0 and count <= max(1, ratio * heads))


_RULES: dict[SmallWidth, Callable[[int, float], int]] = {
    "proportional": lambda size, factor: max(_STEP, round(size * factor / _STEP) * _STEP),
    "heads": lambda count, factor: max(1, round(count * factor)),
    "head_channels": lambda size, factor: size,
    "derived": lambda size, factor: size,
}
