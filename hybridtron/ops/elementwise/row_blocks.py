"""Cutting elementwise work into blocks that stay in a core's cache.

On a CPU an elementwise pass over a large tensor runs at memory speed, about five times slower than the same pass over
data in the L2 cache. Ops that need several passes therefore take all of them over one block of rows before they go on
to the next. On other devices a block is large enough to fill the device.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from hybridtron.ops.device import device_type

T = TypeVar("T")

CPU_BLOCK_ELEMENTS = 1 << 17  # 512 KiB of float32: the few arrays that one op touches fit in 2 MiB of L2
DEVICE_BLOCK_ELEMENTS = 1 << 26


def block_length(row_elements: int, device: torch.device) -> int:
    """Return how many rows of `row_elements` elements make a block, at least one."""
    elements = CPU_BLOCK_ELEMENTS if device_type(device) == "cpu" else DEVICE_BLOCK_ELEMENTS
    return max(1, elements // max(1, row_elements))


def enough(blocks: Iterable[T], x: Tensor) -> Iterator[T]:
    """Yield the blocks of x; of a tensor without values only the first, which is the largest: others compute nothing
    and take no more memory."""
    return itertools.islice(blocks, 1) if x.is_meta else iter(blocks)


def split_rows(*rows: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same block of rows of several [n, ...] tensors, as long as the width of the first allows."""
    length = block_length(rows[0].shape[-1], rows[0].device)
    return enough(zip(*(tensor.split(length) for tensor in rows), strict=True), rows[0])


def row_order(x: Tensor) -> list[int]:
    """Return the axes of x with the leading ones sorted as they lie in memory, the channel axis last.

    A view [b, s, c] of memory laid out [s, b, c] gives [1, 0, 2]: taken in that order its rows flatten without a copy.
    """
    return [*sorted(range(x.dim() - 1), key=x.stride, reverse=True), x.dim() - 1]


def as_rows(x: Tensor, order: list[int]) -> Tensor:
    """Return x [..., c] as rows [n, c], leading axes taken in `order`.

    The result is a view where x has contiguous channels and evenly spaced rows.
    """
    rows = x.permute(order).reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def from_rows(rows: Tensor, shape: torch.Size, order: list[int]) -> Tensor:
    """Invert `as_rows`: view rows [n, c] in the shape [*shape[:-1], c]."""
    ordered = rows.view(*(shape[axis] for axis in order[:-1]), rows.shape[-1])
    return ordered.permute([order.index(axis) for axis in range(len(order))])
