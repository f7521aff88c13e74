"""Architectures to score: blocks and their order, from layers, a pattern or a run's config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hybridtron.config.load import build
from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.mad.models.candidate import SEQ_LEN, ConfigCandidate
from hybridtron.mad.models.layers import (
    ALIASES,
    LAYERS,
    WIDTH,
    block_name,
    blocks_by_pattern_name,
    mad_lab_names,
    map_mixers,
)  # fmt: skip
from hybridtron.mad.models.shrink import DEPTH, shrink
from hybridtron.mad.models.soft_experts import SOFT_EXPERTS
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.identity import block_identity
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import Pattern, parse


@dataclass(frozen=True)
class Architecture(ConfigCandidate):
    """`blocks` and `residual` are as a config writes them, no `residual` is a plain one; `notes` say how they came from
    something larger."""

    name: str
    blocks: dict[str, dict[str, Any]]
    pattern: str
    hidden_size: int = WIDTH
    norm_eps: float = 1e-5
    notes: tuple[str, ...] = ()
    residual: dict[str, Any] = field(default_factory=dict)

    def model(self, vocab_size: int, seq_len: int) -> ModelConfig:
        """Build the model config of one task. Implicit filters span its length, as mad-lab's do; free taps stay."""
        blocks = {name: self._block(block, seq_len) for name, block in self.blocks.items()}
        shared = {"hidden_size": self.hidden_size, "pattern": self.pattern, "norm_eps": self.norm_eps}
        if self.residual:
            shared["residual"] = self.residual
        return build({**shared, "vocab_size": vocab_size, "blocks": blocks, "backend": "torch"}, ModelConfig)

    def fingerprint(self) -> str:
        """Return twelve digits that change with anything that changes what is trained."""
        blocks = {name: block_identity(block) for name, block in self.blocks.items()}
        other = [self.residual] if self.residual else []
        text = json.dumps([blocks, self.pattern, self.hidden_size, self.norm_eps, *other], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _block(self, block: dict[str, Any], seq_len: int) -> dict[str, Any] | MixerConfig:
        block = map_mixers(block, lambda mixer: _spanning(mixer, seq_len))
        if block.get("type") in SOFT_EXPERTS:
            return SOFT_EXPERTS[block["type"]].model_validate({**block, "hidden_size": self.hidden_size})
        return block


def from_layers(layers: Sequence[str], match_mad_lab: bool = False) -> Architecture:
    """Build an architecture from layers by mad-lab's names, _ for - allowed; with `match_mad_lab` as its code has them.

    Raises:
        UserError: for no layer, and for an unknown one, with the nearest name.
    """
    known = {block_name(name) for name in (*LAYERS, *ALIASES)}
    for layer in layers:
        if block_name(layer) not in known:
            raise UserError(f"layers: {layer!r}: expected {one_of(layer, (*LAYERS, *ALIASES))}")
    if not layers:
        raise UserError("layers: expected at least one layer")
    return from_pattern(" ".join(layers), match_mad_lab)


def from_pattern(pattern: str, match_mad_lab: bool = False) -> Architecture:
    """Build an architecture from a pattern of MAD layers, such as `2*(mh_hyena swiglu)`; a dash is read as _."""
    known = blocks_by_pattern_name(match_mad_lab)
    kept_as = mad_lab_names()
    parsed = parse(pattern.replace("-", "_"), known_names=[*known, *kept_as])
    named = Pattern(tuple(kept_as.get(name, name) for name in parsed.layers), parsed.cuts)
    return Architecture(str(named), {name: known[name] for name in named.counts()}, str(named))


def with_width(architecture: Architecture, hidden_size: int) -> Architecture:
    """Return the architecture at another width; numbers of heads and sizes that its layers fix stay."""
    if hidden_size < 1:
        raise UserError(f"hidden_size = {hidden_size}: expected at least 1")
    return replace(architecture, name=f"{architecture.name}, width {hidden_size}", hidden_size=hidden_size)


def with_residual(architecture: Architecture, residual: Mapping[str, Any]) -> Architecture:
    """Return the architecture with another residual topology: `type` and keys, as in a run's `model.residual`.

    Raises:
        UserError: for keys that are no topology's, and for one that does not fit the layers.
    """
    plain = residual == {"type": "plain"}
    made = replace(
        architecture,
        name=architecture.name if plain else f"{architecture.name}, residual {residual.get('type')}",
        residual={} if plain else dict(residual),
    )
    try:
        made.model(vocab_size=16, seq_len=SEQ_LEN)
    except UserError as error:  # names the parameter, not the place in the config that it becomes
        text = str(error)
        own = text.removeprefix("residual.")
        raise UserError(f"residual: {own}" if own != text else text) from None
    return made


def from_model(name: str, model: ModelConfig, depth: int = DEPTH) -> Architecture:
    """Build the proxy of a model of any size; see `shrink`. At most `depth` of its layers are kept."""
    if depth < 1:
        raise UserError(f"depth = {depth}: expected at least 1")
    blocks, pattern, notes = shrink(model, depth)
    residual = {} if model.residual.type == "plain" else model.residual.model_dump()
    return Architecture(name, blocks, pattern, norm_eps=model.norm_eps, notes=tuple(notes), residual=residual)


def _spanning(mixer: dict[str, Any], seq_len: int) -> dict[str, Any]:
    """Return the mixer with the keys that span a sequence set to its length; an unknown type is refused later."""
    config = {**MIXERS, **SOFT_EXPERTS}.get(mixer.get("type", ""))
    keys = [key for key, facts in config.facts().items() if facts.spans_sequence] if config else []
    return mixer | dict.fromkeys(keys, max(seq_len, 2))
