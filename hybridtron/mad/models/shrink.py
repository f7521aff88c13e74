"""A large model at proxy width.

The rule: width 128; feed-forward and expert widths in the same proportion, in steps of 16; as many heads as before, at
most 16; grouped keys in the same proportion; heads that are counted by their channels have 16 of them at most; what a
default derives from the width is derived again; states, windows, experts and convolution lengths stay. Experts are not
balanced: MAD's are not.

Layers keep their order. Where there are more than asked for, whole groups are left out: a sequence mixer with the
channel mixers that follow it. Each kind of group keeps its share, and one at least where there is room, evenly spaced.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any

from hybridtron.mad.models.layers import WIDTH
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import Pattern

DEPTH = 8  # layers kept by default: four blocks of a sequence and a channel mixer
_MOST_HEADS = 16
_HEAD_CHANNELS = 16
_STEP = 16

UNBALANCED = {"balance": "none", "aux_loss": None, "z_loss": 0.0}  # of a mixture of experts


def shrink(model: ModelConfig, depth: int = DEPTH) -> tuple[dict[str, dict[str, Any]], str, list[str]]:
    """Blocks at width 128, a pattern of at most `depth` layers (one group at least), and notes on what changed."""
    layers = _sampled(model, depth)
    factor = WIDTH / model.hidden_size
    blocks = {name: _smaller(model.blocks[name].model_dump(), factor) for name in dict.fromkeys(layers)}
    notes = [f"width {model.hidden_size} -> {WIDTH}"]
    if len(layers) < len(model.layer_names):
        notes.append(f"{len(layers)} of {len(model.layer_names)} layers")
    return blocks, str(Pattern(layers)), notes


def _smaller(block: dict[str, Any], factor: float) -> dict[str, Any]:
    """`block` holds every key of its type, defaults too."""
    smaller = dict(block)
    for key, value in block.items():
        if value and key in _RULES:
            smaller[key] = _RULES[key](block, factor)
    if block["type"] in ("mamba2", "rwkv6"):
        smaller["head_dim"] = min(block["head_dim"], _HEAD_CHANNELS)
    if block["type"] == "moe":
        smaller |= UNBALANCED
    if block["type"] == "parallel":
        smaller["branches"] = [_smaller(branch, factor) for branch in block["branches"]]
    return smaller


def _width(key: str) -> Callable[[dict[str, Any], float], int]:
    return lambda block, factor: max(_STEP, round(block[key] * factor / _STEP) * _STEP)


def _heads(block: dict[str, Any], factor: float) -> int:
    """The largest power of two up to the number of heads: powers of two divide the width."""
    return 1 << (min(block["num_heads"], _MOST_HEADS).bit_length() - 1)


def _grouped(key: str) -> Callable[[dict[str, Any], float], int]:
    """Heads that go with the query heads, in the same proportion where it comes out even."""

    def rule(block: dict[str, Any], factor: float) -> int:
        heads = _heads(block, factor)
        wanted = heads * block[key] / block["num_heads"]
        return heads * max(1, round(wanted / heads)) if wanted > heads else 1 << (max(1, int(wanted)).bit_length() - 1)

    return rule


def _derived(block: dict[str, Any], factor: float) -> None:
    return None


_RULES: dict[str, Callable[[dict[str, Any], float], int | None]] = {
    "ffn_hidden_size": _width("ffn_hidden_size"),
    "shared_ffn_hidden_size": _width("shared_ffn_hidden_size"),
    "expert_size": _width("expert_size"),
    "num_heads": _heads,
    "num_kv_heads": _grouped("num_kv_heads"),
    "num_value_heads": _grouped("num_value_heads"),
    "num_groups": _derived,
    "head_dim": _derived,
    "key_dim": _derived,
    "dt_rank": _derived,
}


def _sampled(model: ModelConfig, depth: int) -> tuple[str, ...]:
    names = model.layer_names
    if len(names) <= depth:
        return names
    groups: list[tuple[str, ...]] = []
    for name in names:
        if groups and model.blocks[name].kind == "channel":
            groups[-1] = (*groups[-1], name)
        else:
            groups.append((name,))
    longest = max(len(group) for group in groups)
    keep = _shares(groups, max(1, depth // longest))
    kept = []
    for kind, places in _places(groups).items():
        count = keep[kind]
        kept += [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]
    return tuple(name for index in sorted(kept) for name in groups[index])


def _places(groups: list[tuple[str, ...]]) -> dict[tuple[str, ...], list[int]]:
    order = sorted(range(len(groups)), key=lambda index: groups[index])
    return {kind: list(places) for kind, places in groupby(order, key=lambda index: groups[index])}


def _shares(groups: list[tuple[str, ...]], total: int) -> dict[tuple[str, ...], int]:
    """How many groups of each kind to keep: largest remainders, one at least for the most frequent `total` kinds."""
    places = _places(groups)
    counts = {kind: len(where) for kind, where in places.items()}
    frequent = sorted(counts, key=lambda kind: (-counts[kind], places[kind][0]))[:total]
    keep = dict.fromkeys(counts, 0) | dict.fromkeys(frequent, 1)
    for _ in range(min(total, len(groups)) - len(frequent)):
        short = max(
            (kind for kind in frequent if keep[kind] < counts[kind]),
            key=lambda kind: total * counts[kind] / len(groups) - keep[kind],
        )
        keep[short] += 1
    return keep
