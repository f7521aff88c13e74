"""Rectangular boxes of a tensor, as a checkpoint stores them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A rectangular part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


def boxes_of_run(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """Cut the flat run [start, stop) of a contiguous tensor into boxes, at most 2 * ndim - 1, in their order.

    Each box is a contiguous piece of the run: a partial row, whole rows, a partial row, and so on in each row.
    """
    if start >= stop:
        return
    if len(shape) <= 1:
        yield Box((start,) * len(shape), (stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first_stop = min(stop, -(-start // row) * row)
    last_start = max(first_stop, stop // row * row)
    yield from _within_row(shape, row, start, first_stop)
    if last_start > first_stop:
        yield Box((first_stop // row, *(0 for _ in shape[1:])), ((last_start - first_stop) // row, *shape[1:]))
    yield from _within_row(shape, row, last_start, stop)


def _within_row(shape: tuple[int, ...], row: int, start: int, stop: int) -> Iterator[Box]:
    """Cut a run that lies in one row of the first axis."""
    index = start // row
    for box in boxes_of_run(shape[1:], start - index * row, stop - index * row):
        yield Box((index, *box.offsets), (1, *box.sizes))


def pieces(box: Box, most: int) -> Iterator[Box]:
    """Cut a box into contiguous pieces of at most `most` elements, in their order."""
    if box.numel <= most:
        yield box
        return
    axis = next(axis for axis, size in enumerate(box.sizes) if size > 1)
    length = box.sizes[axis]
    step = max(1, most * length // box.numel)
    for first in range(0, length, step):
        offsets, sizes = list(box.offsets), list(box.sizes)
        offsets[axis] += first
        sizes[axis] = min(step, length - first)
        yield from pieces(Box(tuple(offsets), tuple(sizes)), most)
