"""The same memory for every architecture: a total state of 4,096 elements (MAD paper, arXiv 2403.17844).

The paper scales architectures without attention so, and exempts every model that has attention layers. Here hybrids are
scaled too: their mixers of fixed state share 4,096 evenly, and attention alone, whose state grows or ends at its
window, stays as it is. Short convolutions, whose caches the paper does not count, stay too. Each mixer type has one key
that sets its state; a branch of a parallel block is a mixer like any other.
"""

from __future__ import annotations

from typing import Any

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mad.models.layers import WIDTH
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.parallel.config import ParallelMixersConfig
from hybridtron.model.config import ModelConfig

TOTAL_STATE = 4096
EXEMPT = ("attention", "short_conv")

_LARGEST = 256
_DIVISORS = [d for d in range(1, WIDTH + 1) if WIDTH % d == 0]

STATE_KEYS: dict[str, str] = {
    "mamba1": "state_dim",
    "mamba2": "state_dim",
    "hyena": "filter_order",
    "mh_hyena": "filter_order",
    "hyena_experts": "filter_order",
    "soft_hyena_experts": "filter_order",
    "hyena_li": "filter_order",
    "gla": "num_heads",
    "linear_attention": "num_heads",
    "gated_deltanet": "num_heads",
    "rwkv6": "head_dim",
}


def with_state(
    model: ModelConfig, blocks: dict[str, dict[str, Any]], seq_len: int
) -> tuple[dict[str, dict[str, Any]], str]:
    """Blocks whose states add up to 4,096 over the pattern, or come nearest, and a note that gives the sum.

    Raises:
        UserError: where a mixer with a state of fixed size has no key that sets it.
    """
    held = sum(_fixed_mixers(model.blocks[name], seq_len) for name in model.layer_names)
    if not held:
        return blocks, "no layer with a state of fixed size"
    share = TOTAL_STATE / held
    made = {
        name: _with_share(model.blocks[name], blocks[name], share, seq_len, name)
        for name in dict.fromkeys(model.layer_names)
    }
    total = sum(made[name][1] for name in model.layer_names)
    changed = {name: block for name, (block, _) in made.items()}
    return {**blocks, **changed}, f"total state {total:,} of the {TOTAL_STATE:,} asked for"


def _fixed_mixers(mixer: MixerConfig, seq_len: int) -> int:
    """How many mixers of fixed state a layer has: more than one where it has branches."""
    if isinstance(mixer, ParallelMixersConfig):
        return sum(_fixed_mixers(branch, seq_len) for branch in mixer.branches)
    return int(_is_fixed(mixer, seq_len))


def _with_share(
    mixer: MixerConfig, block: dict[str, Any], share: float, seq_len: int, where: str
) -> tuple[dict[str, Any], int]:
    """The block with a state as near to `share` as each of its mixers of fixed state allows, and the sum of those."""
    if isinstance(mixer, ParallelMixersConfig):
        made = [
            _with_share(branch, block["branches"][i], share, seq_len, f"{where}.branches[{i}]")
            for i, branch in enumerate(mixer.branches)
        ]
        return {**block, "branches": [branch for branch, _ in made]}, sum(size for _, size in made)
    if not _is_fixed(mixer, seq_len):
        return block, 0
    kind = block["type"]
    if kind not in STATE_KEYS:
        raise UserError(f"--iso-state: block {where} of type {kind}: expected one of {', '.join(STATE_KEYS)}")
    key = STATE_KEYS[kind]
    candidates = range(1, _LARGEST + 1) if key in ("state_dim", "filter_order") else _DIVISORS
    sizes = {}
    for value in candidates:
        size = _state({**block, key: value}, mixer.hidden_size, seq_len)
        if size is not None:
            sizes[value] = size
    best = min(sizes, key=lambda value: (abs(sizes[value] - share), value))
    return {**block, key: best}, sizes[best]


def _is_fixed(mixer: MixerConfig, seq_len: int) -> bool:
    return mixer.type not in EXEMPT and 0 < mixer.state_size(seq_len) == mixer.state_size(2 * seq_len)


def _state(block: dict[str, Any], hidden_size: int, seq_len: int) -> int | None:
    """Of one mixer with these keys; None where they do not fit together."""
    plain = {**block, "type": block["type"].removeprefix("soft_")}
    mapping = {"hidden_size": hidden_size, "vocab_size": 1, "blocks": {"one": plain}, "pattern": "one"}
    try:
        return build(mapping, ModelConfig).blocks["one"].state_size(seq_len)
    except UserError:
        return None
