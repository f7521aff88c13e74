"""The header of a safetensors file: read with every check, and made.

A file is the length of the header (8 bytes, little endian), the header, a JSON object of name -> dtype, shape,
data_offsets, and the tensors' bytes without gaps. See https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from hybridtron.convert.formats.source import TensorInfo
from hybridtron.errors import DamagedCheckpoint, UserError
from hybridtron.files import open_to_read

# In the order of the library, which stores types of later entries first.
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST = 100 * 2**20  # bytes of a header, as in the library
METADATA = "__metadata__"
PICKLES = (b"PK\x03\x04", b"\x80")  # how files of torch.save begin, new and old

Place = tuple[TensorInfo, int]
"""A tensor, and where its bytes begin in the file."""


def header_of(tensors: Mapping[str, TensorInfo]) -> tuple[bytes, dict[str, Place]]:
    """Return the bytes before the tensors of a file, and each tensor with its place, as the library arranges them."""
    order = list(NAMES)
    places: dict[str, tuple[TensorInfo, int]] = {}
    entries: dict[str, Any] = {METADATA: {"format": "pt"}}
    position = 0
    for name in sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name)):
        info, stop = tensors[name], position + tensors[name].size_bytes
        entries[name] = {"dtype": NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [position, stop]}
        places[name] = info, position
        position = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    return header, {name: (info, len(header) + start) for name, (info, start) in places.items()}


def read_header(path: Path) -> dict[str, Place]:
    """Read the tensors of a file and their places, in order of the places.

    Raises DamagedCheckpoint where the file is cut or its header does not describe it; UserError where it is no such
    file; OSError where the system cannot read it.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(8)
        if any(start.startswith(magic) for magic in PICKLES) and int.from_bytes(start, "little") > LONGEST:
            raise UserError(
                f"{path}: is a pickle of torch.save, which can run code when it is read; expected a safetensors file"
            )
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > LONGEST:
            raise UserError(f"{path}: is no safetensors file: expected 8 bytes with the length of its header")
        if 8 + length > size:
            raise DamagedCheckpoint(
                f"{path}: damaged: has {size} bytes; expected a header of {length} after the first 8"
            )
        content = file.read(length)
    try:
        entries = json.loads(content, object_pairs_hook=_unique)
        if not isinstance(entries, dict):
            raise ValueError("is no JSON object")
        entries.pop(METADATA, None)
        placed = [(name, *_entry(name, entry)) for name, entry in entries.items()]
        return _without_gaps(placed, 8 + length, size)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{path}: damaged: its header {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a mapping. Raises ValueError for a key that is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"names {next(key for key in keys if keys.count(key) > 1)} twice")
    return found


def _entry(name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """Return a tensor of a header and the range of its bytes after the header. Raises ValueError."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"has no dtype, shape and data_offsets of {name}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"gives {name} the dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"gives {name} the shape {shape!r} at {offsets!r}; expected lists of whole numbers")
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    if offsets[1] - offsets[0] != info.size_bytes:
        raise ValueError(f"gives {name} {offsets[1] - offsets[0]} bytes; expected {info.size_bytes} by its shape")
    return info, offsets[0], offsets[1]


def _are_counts(values: Any) -> bool:
    """Return whether a value of JSON is a list of whole numbers that are not negative."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _without_gaps(placed: Iterable[tuple[str, TensorInfo, int, int]], start: int, size: int) -> dict[str, Place]:
    """Return tensors with their places, which fill a file from `start` to its end. Raises ValueError."""
    found, position = {}, 0
    for name, info, first, stop in sorted(placed, key=lambda each: each[2:]):
        if first != position:
            word = "overlaps what is before it" if first < position else "leaves a gap before it"
            raise ValueError(f"places {name} at byte {first}: {word}, which ends at {position}")
        found[name] = info, start + first
        position = stop
    if start + position != size:
        raise ValueError(f"describes {start + position} bytes; the file has {size}")
    return found


def elements(tensors: Mapping[str, TensorInfo]) -> int:
    """Return the number of elements of tensors."""
    return sum(math.prod(info.shape) for info in tensors.values())
