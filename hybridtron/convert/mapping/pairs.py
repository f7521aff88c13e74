"""Architectures whose every layer is two of ours: a sequence mixer and a feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal, require_layer
from hybridtron.model.config import ModelConfig

Types = Mapping[str, Sequence[str]]
"""Types of layers, each with the keys that the architecture can express."""


def pattern_of(pairs: Sequence[tuple[str, str]]) -> str:
    """Return the pattern of these pairs of block names, in which what repeats is written once."""
    for length in range(1, len(pairs)):
        repeats = len(pairs) // length
        if list(pairs[:length]) * repeats == list(pairs):
            return f"{repeats}*({pattern_of(pairs[:length])})"
    return " ".join(name for pair in pairs for name in pair)


def pairs_of(
    architecture: str, model: ModelConfig, mixers: Types, feed_forward: Types, *varies: str
) -> list[tuple[Any, Any]]:
    """Return the blocks of each pair of layers.

    Raises UserError for a layer that is of none of these types, has a key that the architecture does not have, or
    differs from the first layer of its type in a key that does not vary.
    """
    layers, blocks = range(len(model.layer_names)), []
    for i in layers:
        expected = feed_forward if i % 2 else mixers
        kind = block_of(model, i).type
        if kind not in expected:
            cannot_express(architecture, model, i, f"expected {' or '.join(expected)} here")
        blocks.append(require_layer(architecture, model, i, kind, *expected[kind]))
    if len(blocks) % 2:
        cannot_express(architecture, model, layers[-1], f"expected {' or '.join(feed_forward)} after it")
    for kind in (*mixers, *feed_forward):
        require_equal(architecture, model, [i for i in layers if blocks[i].type == kind], *varies)
    return list(zip(blocks[::2], blocks[1::2], strict=True))
