"""How a tensor of another format is made of the parts that our checkpoints store, as data.

A table of an architecture is a list of `Entry`. Everything that reads or writes the other format goes by it, so a
converter states names and arrangements and computes nothing of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
"""Whole shape of each stored part, by its key; see `hybridtron.checkpoint_reader.stored_as`."""


@dataclass(frozen=True)
class Entry:
    """One tensor there, and the stored parts of ours that it consists of.

    The parts, of one length in all other axes, follow one another along `axis`. With `groups` they are interleaved: the
    first of so many equal runs of every part, then the second of every part, and so on. With `expert` only that
    element of their first axis counts, and the axis is dropped: `axis` counts without it. Then, in this order, the
    last two axes may be exchanged (`transposed`), and the elements be given another `shape`, such as [c, 1, k].

    Without parts it is a tensor that we do not have, of this `shape` and filled with one value, `fill`.
    """

    name: str
    parts: tuple[str, ...] = ()
    axis: int = 0
    groups: int = 1
    expert: int | None = None
    transposed: bool = False
    shape: Shape | None = None
    fill: float | None = None

    def box(self, shape: Shape) -> tuple[Shape, Shape]:
        """Return offsets and sizes of what of a stored part of this shape belongs to the tensor."""
        if self.expert is None:
            return (0,) * len(shape), shape
        return (self.expert, *(0,) * (len(shape) - 1)), (1, *shape[1:])

    def shape_there(self, shapes: Shapes) -> Shape:
        """Return the shape of the tensor there."""
        if self.shape is not None:
            return self.shape
        shape = self.packed_shape(self.rows(shapes))
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    def rows(self, shapes: Shapes) -> list[Shape]:
        """Return the shapes of the boxes of the parts, in order, without the axis of experts."""
        return [shapes[part] if self.expert is None else shapes[part][1:] for part in self.parts]

    def packed_shape(self, rows: Sequence[Shape]) -> Shape:
        """Return the shape of boxes of these shapes one after another along `axis`."""
        return (*rows[0][: self.axis], sum(row[self.axis] for row in rows), *rows[0][self.axis + 1 :])


def assemble(entry: Entry, parts: Sequence[Tensor]) -> Tensor:
    """Make the tensor there of the boxes of its parts, in order. Contiguous."""
    rows = [part[0] for part in parts] if entry.expert is not None else list(parts)
    if len(rows) == 1:
        whole = rows[0]
    elif entry.groups == 1:
        whole = torch.cat(rows, entry.axis)
    else:
        runs = [row.unflatten(entry.axis, (entry.groups, -1)) for row in rows]
        whole = torch.cat(runs, entry.axis + 1).flatten(entry.axis, entry.axis + 1)
    if entry.transposed:
        whole = whole.transpose(-2, -1)
    return (whole if entry.shape is None else whole.reshape(entry.shape)).contiguous()


def disassemble(entry: Entry, tensor: Tensor, shapes: Shapes) -> list[Tensor]:
    """Cut the tensor there into the boxes of its parts, in order: the inverse of `assemble`."""
    rows = entry.rows(shapes)
    shape = entry.packed_shape(rows)
    if entry.transposed:
        tensor = tensor.reshape(*shape[:-2], shape[-1], shape[-2]).transpose(-2, -1)
    runs = tensor.reshape(shape).unflatten(entry.axis, (entry.groups, -1))
    cut = runs.split([row[entry.axis] // entry.groups for row in rows], entry.axis + 1)
    boxes = [run.flatten(entry.axis, entry.axis + 1) for run in cut]
    return [box.unsqueeze(0) if entry.expert is not None else box for box in boxes]


def check_complete(entries: Iterable[Entry], shapes: Shapes) -> None:
    """Raise AssertionError where a table leaves out a part of ours, names one twice, or one that is not there."""
    covered = dict.fromkeys(shapes, 0)
    for entry in entries:
        for part in entry.parts:
            if part not in shapes:
                raise AssertionError(f"{entry.name}: {part} is no stored part")
            covered[part] += math.prod(entry.box(shapes[part])[1])
    for part, elements in covered.items():
        if elements != math.prod(shapes[part]):
            raise AssertionError(f"{part}: {elements} of its {math.prod(shapes[part])} elements have a name there")
