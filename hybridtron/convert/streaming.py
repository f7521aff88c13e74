"""Convert tensors entry by entry: a few of them in memory at a time, and of a very large one a box."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hybridtron.config.nearest import nearest
from hybridtron.convert.formats.byte_runs import BUFFER
from hybridtron.convert.formats.source import Sink, Source, TensorInfo, boxes, dtype_name
from hybridtron.convert.mapping.entry import Entry, Shapes, assemble, disassemble
from hybridtron.convert.mapping.table import Table
from hybridtron.convert.workers import for_each
from hybridtron.distributed.checkpoint.boxes import Box
from hybridtron.errors import UserError

Side = Literal["ours", "theirs"]
NAMED = 5  # tensors that a message names
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Piece(NamedTuple):
    """A box of a tensor there, and the boxes of our parts that it consists of."""

    entry: Entry
    there: Box
    here: list[tuple[str, Box]]
    is_same: bool  # the one box has the same values in the same order


def pieces(table: Table, dtype: Callable[[Entry], torch.dtype]) -> Iterator[Piece]:
    """Yield what is converted at once: a tensor, or a box of a part that has the same rows on both sides."""
    for entry in table.entries:
        shape = entry.shape_there(table.shapes)
        if _has_same_rows(entry, shape, table.shapes):
            first = 0
            for part in entry.parts:
                for box in _large_boxes(TensorInfo(table.shapes[part], dtype(entry))):
                    there = Box((first + box.offsets[0], *box.offsets[1:]), box.sizes) if shape else box
                    yield Piece(entry, there, [(part, box)], True)
                first += table.shapes[part][0] if shape else 0
        else:
            here = [(part, Box(*entry.box(table.shapes[part]))) for part in entry.parts]
            yield Piece(entry, Box((0,) * len(shape), shape), here, False)


def _has_same_rows(entry: Entry, shape: tuple[int, ...], shapes: Shapes) -> bool:
    """Return whether the rows of the parts follow one another in the tensor there."""
    if not entry.parts or entry.transposed or entry.expert is not None:
        return False
    if len(entry.parts) == 1:
        return shape == shapes[entry.parts[0]]
    rows = sum(shapes[part][0] for part in entry.parts)
    return entry.axis == 0 and entry.groups == 1 and all(shape == (rows, *shapes[part][1:]) for part in entry.parts)


def _large_boxes(info: TensorInfo) -> Iterable[Box]:
    """Return the boxes that are converted one at a time: all of a tensor, or chunks of a very large one.

    All of it, so that chunks of a checkpoint that hold some of its columns are read once, and in one run.
    """
    return [Box((0,) * len(info.shape), info.shape)] if info.size_bytes <= BUFFER else boxes(info)


def write_theirs(table: Table, ours: Source, theirs: Sink) -> None:
    """Write every tensor there from our stored parts."""

    def convert(piece: Piece) -> None:
        info = theirs.tensors[piece.entry.name]
        if not piece.entry.parts:
            value = torch.full(info.shape, piece.entry.fill or 0.0, dtype=info.dtype)
        else:
            parts = [ours.read(part, *box) for part, box in piece.here]
            value = parts[0] if piece.is_same else assemble(piece.entry, parts)
        theirs.write(piece.entry.name, _converted(piece.entry.name, value, info.dtype), piece.there.offsets)

    for_each(convert, pieces(table, lambda entry: theirs.tensors[entry.name].dtype))


def write_ours(table: Table, theirs: Source, ours: Sink) -> None:
    """Write our stored parts from the tensors there. Raises UserError where one that we lack is not what it must be."""

    def convert(piece: Piece) -> None:
        value = theirs.read(piece.entry.name, *piece.there)
        if not piece.entry.parts and not bool(value.eq(piece.entry.fill or 0.0).all()):
            raise UserError(f"{piece.entry.name}: has other values than {piece.entry.fill}; no layer here has it")
        for (part, box), found in zip(piece.here, _parts(table, piece, value), strict=True):
            ours.write(part, _converted(piece.entry.name, found, ours.tensors[part].dtype), box.offsets)

    for_each(convert, pieces(table, lambda entry: theirs.tensors[entry.name].dtype))


def _converted(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in a number format. Raises UserError where a finite value becomes an infinite one."""
    found = value.to(dtype)
    if found.dtype != value.dtype and not torch.equal(found.isfinite(), value.isfinite()):
        largest = value[value.isfinite()].abs().max().item()
        raise UserError(
            f"{name}: its largest value, {largest:.3g}, is beyond {dtype_name(dtype)}; expected another dtype"
        )
    return found


def compare(table: Table, ours: Source, theirs: Source, *, written: Side) -> dict[str, bool]:
    """Return for each tensor there, read back, whether it has the bytes that were to be written.

    Those are the bytes of what was read, in the number format of what was written.
    """
    equal = {entry.name: True for entry in table.entries}

    def compare_piece(piece: Piece) -> None:
        value = theirs.read(piece.entry.name, *piece.there)
        for (part, box), found in zip(piece.here, _parts(table, piece, value), strict=True):
            kept = ours.read(part, *box)
            dtype = kept.dtype if written == "ours" else found.dtype
            if not is_equal(kept.to(dtype), found.to(dtype)):
                equal[piece.entry.name] = False

    for_each(compare_piece, pieces(table, lambda entry: theirs.tensors[entry.name].dtype))
    return equal


def _parts(table: Table, piece: Piece, value: Tensor) -> list[Tensor]:
    if piece.is_same or not piece.entry.parts:
        return [value] if piece.is_same else []
    return disassemble(piece.entry, value, table.shapes)


def is_equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors of one shape and number format have the same bytes."""
    one, other = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    if not any(number % 8 for number in (len(one), one.storage_offset(), other.storage_offset())):
        one, other = one.view(torch.int64), other.view(torch.int64)  # compared four times as fast
    return torch.equal(one, other)


def infos_there(
    table: Table, ours: Mapping[str, TensorInfo], dtype: torch.dtype | None = None
) -> dict[str, TensorInfo]:
    """Return what the tensors there will be, in order. Raises UserError where a tensor's parts differ in format."""
    main = dtype or main_dtype(ours.values())
    found = {}
    for entry in table.entries:
        dtypes = {_target(table, part, ours[part].dtype, dtype) for part in entry.parts} or {main}
        if len(dtypes) > 1:
            raise UserError(f"{entry.name}: its parts {', '.join(entry.parts)} have different number formats")
        found[entry.name] = TensorInfo(entry.shape_there(table.shapes), dtypes.pop())
    return found


def infos_here(
    table: Table, theirs: Mapping[str, TensorInfo], dtype: torch.dtype | None = None
) -> dict[str, TensorInfo]:
    """Return what our stored parts will be, in order. Raises UserError for float16, wanted or found."""
    if dtype == torch.float16:
        raise UserError("dtype = float16: expected float32 or bfloat16, in which models are trained here")
    dtypes: dict[str, torch.dtype] = {}
    for entry in table.entries:
        for part in entry.parts:
            own = _target(table, part, theirs[entry.name].dtype, dtype)
            if own == torch.float16 or not own.is_floating_point:
                raise UserError(
                    f"{entry.name}: is {dtype_name(theirs[entry.name].dtype)}; expected float32 or bfloat16, in which "
                    "models are trained here, or `dtype` to convert it"
                )
            if dtypes.setdefault(part, own) != own:
                raise UserError(
                    f"{entry.name}: is {dtype_name(own)}; expected {dtype_name(dtypes[part])} as the rest of {part}"
                )
    return {part: TensorInfo(shape, dtypes[part]) for part, shape in table.shapes.items()}


def _target(table: Table, part: str, found: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """Return the number format that a part gets: as found, or the one wanted where it need not be float32."""
    return found if wanted is None else torch.float32 if part in table.float32 else wanted


def main_dtype(tensors: Iterable[TensorInfo]) -> torch.dtype:
    """Return the number format of most bytes."""
    sizes: Counter[torch.dtype] = Counter()
    for info in tensors:
        sizes[info.dtype] += info.size_bytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def chosen_dtype(name: str | None) -> torch.dtype | None:
    """Return the number format of a name. Raises UserError for another name."""
    if name is not None and name not in DTYPES:
        close = nearest(str(name), DTYPES)
        hint = f" (nearest: {close})" if close else ""
        raise UserError(f"dtype = {name}: expected one of {', '.join(DTYPES)}{hint}")
    return None if name is None else DTYPES[name]


def require_same_tensors(
    where: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, TensorInfo], ignore: Sequence[str] = ()
) -> list[str]:
    """Return the left-over tensors that patterns of `ignore` match.

    Raises UserError, with their number and the first names, for other left-over ones, for missing ones, for those of
    another shape, and for a pattern that matches none.
    """
    extra = [name for name in found if name not in expected]
    ignored = [name for name in extra if any(fnmatchcase(name, pattern) for pattern in ignore)]
    for pattern in ignore:
        if not any(fnmatchcase(name, pattern) for name in extra):
            close = nearest(pattern, extra)
            hint = f" (nearest: {close})" if close else ""
            raise UserError(f"ignore = {pattern}: matches no tensor that is left over in {where}{hint}")
    wrong = {
        "missing": [name for name in expected if name not in found],
        "left over": [name for name in extra if name not in ignored],
        "of another shape": [
            f"{name} {list(found[name].shape)} (expected {list(shape)})"
            for name, shape in expected.items()
            if name in found and found[name].shape != shape
        ],
    }
    problems = [f"{len(names)} {what}: {_first(names)}" for what, names in wrong.items() if names]
    if problems:
        raise UserError(f"{where}: tensors are {'; '.join(problems)}")
    return ignored


def _first(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
