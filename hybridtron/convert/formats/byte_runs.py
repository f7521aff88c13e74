"""Bytes of boxes of tensors in files: which runs they are, and reading and writing them."""

from __future__ import annotations

import collections
import contextlib
import math
import mmap
import os
import weakref
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from hybridtron.distributed.checkpoint.boxes import Box

BUFFER = 128 * 2**20  # bytes of address space of a buffer, of which only those used take memory
WRITTEN = 256 * 2**10  # bytes at a time: for more Linux looks for large pages of its cache, which takes far longer
KEPT = 8  # buffers that are kept for reuse
LARGE = 4 * 2**20  # bytes from which a tensor gets huge pages, which take a tenth of the time to hand out
Run = tuple[int, int, int]  # where it begins in one box and in the other, and its length, in elements


def common_runs(one: Box, other: Box) -> Iterator[Run]:
    """Yield the runs of elements, as long as possible, that are contiguous in two boxes of one tensor."""
    offsets = tuple(map(max, one.offsets, other.offsets))
    stops = (min(a + b, c + d) for a, b, c, d in zip(*one, *other, strict=True))
    sizes = tuple(stop - offset for stop, offset in zip(stops, offsets, strict=True))
    if any(size <= 0 for size in sizes):
        return
    axis = len(sizes)  # all axes from this one on are whole in both boxes
    while axis and sizes[axis - 1] == one.sizes[axis - 1] == other.sizes[axis - 1]:
        axis -= 1
    outer = max(axis - 1, 0)
    length = math.prod(sizes[outer:])
    starts = [_starts(box, offsets, sizes[:outer]) for box in (one, other)]
    for first, second in zip(*starts, strict=True):
        yield first, second, length


def _starts(box: Box, offsets: tuple[int, ...], outer: tuple[int, ...]) -> list[int]:
    """Return where, in a box, each run begins of those that the outer axes number."""
    strides = [math.prod(box.sizes[axis + 1 :]) for axis in range(len(box.sizes))]
    first = sum((a - b) * stride for a, b, stride in zip(offsets, box.offsets, strides, strict=True))
    starts = np.array([first])
    for size, stride in zip(outer, strides, strict=False):
        starts = np.add.outer(starts, np.arange(size) * stride).ravel()
    return starts.tolist()


def new_tensor(sizes: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor to read into; its values are arbitrary."""
    size = math.prod(sizes) * dtype.itemsize
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(sizes, dtype=dtype)
    memory = _take(size)
    view = memoryview(memory)  # which lives as long as the tensor's memory is in use
    if len(memory) == BUFFER:
        weakref.finalize(view, _unused.append, memory).atexit = False
    return torch.frombuffer(view, dtype=dtype, count=math.prod(sizes)).view(sizes)


# Memory of tensors that are gone, for the next ones: handing out new pages takes longer than reading into them.
_unused: collections.deque[mmap.mmap] = collections.deque(maxlen=KEPT)


def _take(size: int) -> mmap.mmap:
    """Return memory of at least `size` bytes: a buffer, used before where one is free, or what is larger than that."""
    if size <= BUFFER:
        with contextlib.suppress(IndexError):
            return _unused.pop()
    memory = mmap.mmap(-1, max(size, BUFFER), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # huge pages are of private memory
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def bytes_of(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def read_runs(descriptor: int, start: int, runs: Iterable[Run], width: int, memory: memoryview) -> None:
    """Read runs of elements of `width` bytes: of a box whose bytes begin at `start` in a file, into that of the memory.

    Raises EOFError where the file ends before, OSError.
    """
    for stored, held, length in runs:
        view = memory[held * width : (held + length) * width]
        read_at(descriptor, start + stored * width, view)


def read_at(descriptor: int, position: int, view: memoryview) -> None:
    """Fill a view from this position of a file. Raises EOFError where the file ends before, OSError."""
    while view:
        count = os.preadv(descriptor, [view], position)
        if not count:
            raise EOFError(f"ends at byte {position}")
        position, view = position + count, view[count:]


def write_at(descriptor: int, position: int, *contents: bytes | memoryview) -> None:
    """Write contents one after another from this position of a file. Raises OSError."""
    for content in contents:
        view = memoryview(content)
        while view:
            count = os.pwrite(descriptor, view[:WRITTEN], position)
            position, view = position + count, view[count:]
