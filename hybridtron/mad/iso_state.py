"""The same memory for every architecture: a total state of 4,096 elements (MAD paper, arXiv 2403.17844).

Layers whose state does not grow share it evenly; attention is exempt, as in the paper, and short convolutions, whose
caches it does not count. Each layer type has one key that sets its state.
"""

from __future__ import annotations

from typing import Any

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.mad.layers import WIDTH
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
        UserError: where a block with a state of fixed size has no key that sets it.
    """
    held = [name for name in model.layer_names if _is_fixed(model, name, seq_len)]
    if not held:
        return blocks, "no layer with a state of fixed size"
    share = TOTAL_STATE / len(held)
    changed = dict(blocks)
    total = 0
    for name in dict.fromkeys(held):
        kind = blocks[name]["type"]
        if kind not in STATE_KEYS:
            raise UserError(f"--iso-state: block {name} of type {kind}: expected one of {', '.join(STATE_KEYS)}")
        key = STATE_KEYS[kind]
        candidates = range(1, _LARGEST + 1) if key in ("state_dim", "filter_order") else _DIVISORS
        sizes = {}
        for value in candidates:
            size = _state(model, name, {**blocks[name], key: value}, seq_len)
            if size is not None:
                sizes[value] = size
        best = min(sizes, key=lambda value: (abs(sizes[value] - share), value))
        changed[name] = {**blocks[name], key: best}
        total += sizes[best] * held.count(name)
    return changed, f"total state {total:,} of the {TOTAL_STATE:,} asked for"


def _is_fixed(model: ModelConfig, name: str, seq_len: int) -> bool:
    block = model.blocks[name]
    return block.type not in EXEMPT and 0 < block.state_size(seq_len) == block.state_size(2 * seq_len)


def _state(model: ModelConfig, name: str, block: dict[str, Any], seq_len: int) -> int | None:
    """Of one layer of this block; None where its keys do not fit together."""
    mapping = {"hidden_size": model.hidden_size, "vocab_size": 1, "blocks": {name: block}, "pattern": name}
    try:
        if block["type"].startswith("soft_"):
            mapping["blocks"] = {name: {**block, "type": block["type"].removeprefix("soft_")}}
        return build(mapping, ModelConfig).blocks[name].state_size(seq_len)
    except UserError:
        return None
