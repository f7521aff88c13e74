"""The same memory for every architecture: a total state of 4,096 elements (MAD paper, arXiv 2403.17844).

The paper scales architectures without attention so, and exempts every model that has attention layers. Here hybrids are
scaled too: their mixers of fixed state share 4,096 evenly, and attention alone, whose state grows or ends at its
window, stays as it is. Short convolutions, whose caches the paper does not count, stay too. Which key sets the state is
a fact of the primitive's config; a branch of a parallel block is a mixer like any other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import Architecture
from hybridtron.mad.models.candidate import SEQ_LEN
from hybridtron.mad.models.layers import WIDTH
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig

TOTAL_STATE = 4096

_CANDIDATES = {"free": range(1, 257), "divisor": [d for d in range(1, WIDTH + 1) if WIDTH % d == 0]}


def iso_state(architecture: Architecture) -> Architecture:
    """Return the architecture with states that add up to 4,096 over its layers, or come nearest; a note gives the sum.

    Raises:
        UserError: where a mixer with a state of fixed size has no key that sets it.
    """
    model, blocks = architecture.model(vocab_size=16, seq_len=SEQ_LEN), architecture.blocks
    held = sum(_is_fixed(mixer) for name in model.layer_names for mixer in model.blocks[name].mixers)
    note = "no layer with a state of fixed size"
    if held:
        share = TOTAL_STATE / held
        made = {
            name: _with_share(model.blocks[name], blocks[name], share, name)
            for name in dict.fromkeys(model.layer_names)
        }
        total = sum(made[name][1] for name in model.layer_names)
        blocks = blocks | {name: block for name, (block, _) in made.items()}
        note = f"total state {total:,} of the {TOTAL_STATE:,} asked for"
    name = f"{architecture.name}, iso-state"
    return replace(architecture, name=name, blocks=blocks, notes=(*architecture.notes, note))


def _with_share(mixer: Any, block: dict[str, Any], share: float, where: str) -> tuple[dict[str, Any], int]:
    """Return the block with each state as near to `share` as its mixers of fixed state allow, and the sum of those."""
    if "branches" in block:
        made = [
            _with_share(branch, block["branches"][i], share, f"{where}.branches[{i}]")
            for i, branch in enumerate(mixer.branches)
        ]
        return {**block, "branches": [branch for branch, _ in made]}, sum(size for _, size in made)
    if not _is_fixed(mixer):
        return block, 0
    found = _state_key(type(mixer))
    if found is None:
        known = ", ".join(name for name, config in MIXERS.items() if _state_key(config))
        raise UserError(f"iso_state: block {where} of type {block['type']}: expected one of {known}")
    key, values = found
    sizes = {}
    for value in _CANDIDATES[values]:
        size = _state({**block, key: value}, mixer.hidden_size)
        if size is not None:
            sizes[value] = size
    best = min(sizes, key=lambda value: (abs(sizes[value] - share), value))
    return {**block, key: best}, sizes[best]


def _state_key(config: type[MixerConfig]) -> tuple[str, str] | None:
    """Return the key that sets the size of the state, and which values it takes."""
    found = [
        (key, facts.sets_state) for key, facts in config.facts().items() if facts.sets_state and config.shares_state
    ]
    return found[0] if found else None


def _is_fixed(mixer: MixerConfig) -> bool:
    return mixer.shares_state and 0 < mixer.state_size(SEQ_LEN) == mixer.state_size(2 * SEQ_LEN)


def _state(block: dict[str, Any], hidden_size: int) -> int | None:
    """Count the state of one mixer with these keys; None where they do not fit together."""
    plain = {**block, "type": block["type"].removeprefix("soft_")}
    mapping = {"hidden_size": hidden_size, "vocab_size": 1, "blocks": {"one": plain}, "pattern": "one"}
    try:
        return build(mapping, ModelConfig).blocks["one"].state_size(SEQ_LEN)
    except UserError:
        return None
