"""A large model at proxy width.

The rule: width 128; feed-forward and expert widths in the same proportion, in steps of 16; as many heads as before, at
most 16; grouped keys in the same proportion; heads that are counted by their channels have 16 of them at most; what a
default derives from the width is derived anew; states, windows, experts and convolution lengths stay. Experts are not
balanced: MAD's are not.

Layers keep their order. Where there are more than asked for, whole groups are left out: a sequence mixer with the
channel mixers that follow it, or the layers that a parallel residual topology adds together. Each kind of group keeps
its share, and one at least where `depth` allows, evenly spaced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from hybridtron.mad.models.layers import WIDTH, map_mixers
from hybridtron.mixers.facts import SmallWidth
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import Pattern

DEPTH = 8  # layers kept by default: four blocks of a sequence and a channel mixer
_MOST_HEADS = 16
_HEAD_CHANNELS = 16
_STEP = 16


def shrink(model: ModelConfig, depth: int = DEPTH) -> tuple[dict[str, dict[str, Any]], str, list[str]]:
    """Return blocks at width 128, a pattern of at most `depth` layers (one group at least), and notes on changes."""
    layers = _sampled(model, depth)
    factor = WIDTH / model.hidden_size
    blocks = {
        name: map_mixers(model.blocks[name].model_dump(), lambda mixer: _smaller(mixer, factor))
        for name in dict.fromkeys(layers)
    }
    notes = [f"width {model.hidden_size} -> {WIDTH}"]
    if len(layers) < len(model.layer_names):
        notes.append(f"{len(layers)} of {len(model.layer_names)} layers")
    return blocks, str(Pattern(layers)), notes


def _smaller(block: dict[str, Any], factor: float) -> dict[str, Any]:
    """Return one mixer at proxy width; `block` holds every key of its type, defaults too."""
    config = MIXERS[block["type"]]
    smaller = block | config.without_balance
    for key, facts in config.facts().items():
        if block[key] and facts.at_small_width:
            smaller[key] = _RULES[facts.at_small_width](block[key], block, factor)
    return smaller


def _proportional(size: int, block: dict[str, Any], factor: float) -> int:
    return max(_STEP, round(size * factor / _STEP) * _STEP)


def _heads(count: int, block: dict[str, Any], factor: float) -> int:
    """Return the largest power of two up to the number of heads: powers of two divide the width."""
    return 1 << (min(count, _MOST_HEADS).bit_length() - 1)


def _grouped_heads(count: int, block: dict[str, Any], factor: float) -> int:
    """Return heads that go with the query heads, in the same proportion where it comes out even."""
    heads = _heads(block["num_heads"], block, factor)
    wanted = heads * count / block["num_heads"]
    return heads * max(1, round(wanted / heads)) if wanted > heads else 1 << (max(1, int(wanted)).bit_length() - 1)


_RULES: dict[SmallWidth, Callable[[int, dict[str, Any], float], int | None]] = {
    "proportional": _proportional,
    "heads": _heads,
    "grouped_heads": _grouped_heads,
    "head_channels": lambda size, block, factor: min(size, _HEAD_CHANNELS),
    "derived": lambda size, block, factor: None,
}


def _sampled(model: ModelConfig, depth: int) -> tuple[str, ...]:
    """Return the names of the layers to keep, in order: those of whole groups."""
    if len(model.layer_names) <= depth:
        return model.layer_names
    normed = [model.residual.has_norm(index) for index in range(len(model.layer_names))]
    groups: list[tuple[str, ...]] = []
    for name, own_norm in zip(model.layer_names, normed, strict=True):
        if groups and (model.blocks[name].kind == "channel" if all(normed) else not own_norm):
            groups[-1] = (*groups[-1], name)
        else:
            groups.append((name,))
    keep = _shares(Counter(groups), max(1, depth // max(map(len, groups))))
    kept = []
    for kind, count in keep.items():
        places = [index for index, group in enumerate(groups) if group == kind]
        kept += [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]
    return tuple(name for index in sorted(kept) for name in groups[index])


def _shares(counts: Counter[tuple[str, ...]], total: int) -> Counter[tuple[str, ...]]:
    """Count the groups of each kind to keep: largest remainders, one at least for the most frequent `total` kinds."""
    keep = Counter(kind for kind, _ in counts.most_common(total))
    for _ in range(min(total, counts.total()) - len(keep)):
        short = max(
            (kind for kind in keep if keep[kind] < counts[kind]),
            key=lambda kind: total * counts[kind] / counts.total() - keep[kind],
        )
        keep[short] += 1
    return keep
