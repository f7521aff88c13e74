"""manifest.json: sizes and checksums of all files of a checkpoint and of all tensors in them.

    {"crc32": "89abcdef", "format": 1, "files": {NAME: {"size": ..., "crc32": ..., "tensors": [{"tensor": KEY,
     "offsets": [...], "start": ..., "length": ..., "crc32": ...}, ...]}, ...}}

The tensors of a file cover it without gaps. The first checksum is that of the bytes after its closing quote.

The checksum is CRC-32: it finds every single flipped bit and every damaged run of up to 32 bits, `zlib` computes it at
memory speed, and that of a file follows from those of its parts. It guards against accidents, not against forgery.

This module imports neither torch nor megatron-core.
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hybridtron.errors import DamagedCheckpoint, unreadable
from hybridtron.files import open_to_read, read_plain, replace_file

NAME = "manifest.json"
FORMATS = "metadata.json"  # names the manifest, so that a lost one is noticed
Verify = Literal["full", "sampled", "none"]

SAMPLE = 16  # of so many stored tensors, one is read by `sampled`
BLOCK = 8 * 2**20  # bytes that are read at once
PREFIX, SUFFIX = b'{"crc32": "', b'", '


@dataclass(frozen=True)
class StoredTensor:
    """A chunk of a tensor, which begins at `offsets` in the whole one, and the bytes of a file that hold it."""

    tensor: str
    offsets: tuple[int, ...]
    start: int
    length: int
    crc32: int


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint; `tensors` is empty for those that hold none."""

    size: int
    crc32: int
    tensors: tuple[StoredTensor, ...] = ()


Part = tuple[str, StoredTensor]  # of a checkpoint, with the name of its file


def file_of_bytes(content: bytes) -> StoredFile:
    """Return the entry of a small file."""
    return StoredFile(len(content), zlib.crc32(content))


def file_of_tensors(tensors: Sequence[StoredTensor]) -> StoredFile:
    """Return the entry of a file that these tensors, in their order, fill."""
    crc = functools.reduce(lambda crc, tensor: combine(crc, tensor.crc32, tensor.length), tensors, 0)
    return StoredFile(sum(tensor.length for tensor in tensors), crc, tuple(tensors))


def write(folder: Path, files: dict[str, StoredFile]) -> None:
    """Write the manifest of a folder's files. Raises OSError."""
    entries = {name: _as_json(file) for name, file in files.items()}
    body = SUFFIX + json.dumps({"format": 1, "files": entries}).encode()[1:] + b"\n"
    replace_file(folder / NAME, PREFIX + b"%08x" % zlib.crc32(body) + body)


def read(folder: Path) -> dict[str, StoredFile] | None:
    """Read the manifest of a checkpoint; None for one of before there were manifests.

    Raises DamagedCheckpoint where it is damaged, or missing although the checkpoint names it; OSError, UserError.
    """
    file = folder / NAME
    try:
        if not file.exists():
            if NAME in json.loads(read_plain(folder / FORMATS)).values():
                raise ValueError("is missing")
            return None
        content = read_plain(file)
        crc, body = content[len(PREFIX) : len(PREFIX) + 8], content[len(PREFIX) + 8 :]
        if not content.startswith(PREFIX) or crc != b"%08x" % zlib.crc32(body):
            raise ValueError("does not match its own checksum")
        files = json.loads(content)["files"]
        return {_plain_name(name): _from_json(entry) for name, entry in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise unreadable(file, error, str(error)) from None


def verify(folder: Path, how: Verify = "full", share: tuple[int, int] = (0, 1)) -> None:
    """Compare the files of a checkpoint with its manifest, if it has one.

    Args:
        folder: the checkpoint.
        how: `full` reads every byte, `sampled` the small files and one in sixteen of a process's stored tensors,
            drawn anew at each call, `none` nothing. Both of the first compare the sizes of all files.
        share: the number of this process and how many processes divide the reading among them.

    Raises:
        DamagedCheckpoint: names the file, and the tensor in it, that is damaged.
        OSError: where the system cannot read a file.
    """
    if how == "none":
        return
    mine = _share(_parts(checked_sizes(folder)), *share)
    for name, parts in _by_file(_sample(mine) if how == "sampled" else mine).items():
        verify_parts(folder / name, parts)


def checked_sizes(folder: Path) -> dict[str, StoredFile]:
    """Read the manifest of a checkpoint, and compare the sizes of all files with it; empty where there is none.

    Raises DamagedCheckpoint, OSError.
    """
    files = read(folder) or {}
    for name, file in files.items():
        path = folder / name
        if not path.is_file():
            raise DamagedCheckpoint(f"{path}: damaged: is missing")
        if path.stat().st_size != file.size:
            raise DamagedCheckpoint(f"{path}: damaged: has {path.stat().st_size} bytes; expected {file.size}")
    return files


def combine(first: int, second: int, length: int) -> int:
    """Return the CRC-32 of A + B from those of A and of B, which has `length` bytes."""
    return _multiply(_power(length), first) ^ second


def _multiply(a: int, b: int) -> int:
    """Multiply two polynomials over GF(2) modulo that of CRC-32; the highest bit is the lowest power."""
    product, bit = 0, 1 << 31
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
    return product


@functools.lru_cache(maxsize=4096)
def _power(length: int) -> int:
    """Return x to the power of 8 * length."""
    power, square = 1 << 31, 1 << 23  # x^0, x^8
    while length:
        if length & 1:
            power = _multiply(square, power)
        square = _multiply(square, square)
        length >>= 1
    return power


def _parts(files: dict[str, StoredFile]) -> list[Part]:
    """Return all that the files hold, with the file of each part: tensors, and small files whole."""
    return [
        (name, part)
        for name, file in files.items()
        for part in file.tensors or [StoredTensor("", (), 0, file.size, file.crc32)]
    ]


def _share(parts: Sequence[Part], rank: int, processes: int) -> list[Part]:
    """Return the parts that this process reads; the processes divide the bytes of the same list."""
    total = max(sum(part.length for _, part in parts), 1)
    starts = itertools.accumulate((part.length for _, part in parts), initial=0)
    owners = (min(start * processes // total, processes - 1) for start in starts)
    return [part for part, owner in zip(parts, owners, strict=False) if owner == rank]


def _sample(parts: Sequence[Part]) -> list[Part]:
    """Return the small files among the parts, and one in SAMPLE of the tensors, at random."""
    tensors = [part for part in parts if part[1].tensor]
    return [part for part in parts if not part[1].tensor] + random.sample(tensors, -(-len(tensors) // SAMPLE))


def _by_file(parts: Iterable[Part]) -> dict[str, list[StoredTensor]]:
    """Return the parts of each file."""
    by_file: dict[str, list[StoredTensor]] = {}
    for name, part in parts:
        by_file.setdefault(name, []).append(part)
    return by_file


def verify_parts(path: Path, parts: Sequence[StoredTensor]) -> None:
    """Read parts of a file and compare their checksums. Raises DamagedCheckpoint, OSError."""
    try:
        with open_to_read(path) as file:
            for part in parts:
                if _crc_of(file, part) != part.crc32:
                    where = f"tensor {part.tensor} at {list(part.offsets)} " if part.tensor else ""
                    raise DamagedCheckpoint(f"{path}: damaged: {where}does not match its checksum in {NAME}")
    except OSError as error:
        raise unreadable(path, error, f"cannot be read: {error.strerror}") from None


def _crc_of(file: Any, part: StoredTensor) -> int:
    """Return the CRC-32 of a part of an open file."""
    file.seek(part.start)
    crc, left = 0, part.length
    while left and (block := file.read(min(left, BLOCK))):
        crc, left = zlib.crc32(block, crc), left - len(block)
    return crc


def _as_json(file: StoredFile) -> dict[str, Any]:
    """Return a file's entry as JSON values."""
    entry: dict[str, Any] = {"size": file.size, "crc32": f"{file.crc32:08x}"}
    if file.tensors:
        entry["tensors"] = [{**vars(tensor), "crc32": f"{tensor.crc32:08x}"} for tensor in file.tensors]
    return entry


def _from_json(entry: dict[str, Any]) -> StoredFile:
    """Return a file's entry from JSON values. Raises ValueError where its tensors leave a gap."""
    tensors, position = [], 0
    for fields in entry.get("tensors", ()):
        tensor = StoredTensor(**{**fields, "offsets": tuple(fields["offsets"]), "crc32": int(fields["crc32"], 16)})
        if tensor.start != position or tensor.length <= 0:
            raise ValueError(f"tensor {tensor.tensor} begins at byte {tensor.start}; expected {position}")
        position += tensor.length
        tensors.append(tensor)
    size = int(entry["size"])
    if tensors and position != size:
        raise ValueError(f"its tensors fill {position} bytes; expected {size}")
    return StoredFile(size, int(entry["crc32"], 16), tuple(tensors))


def _plain_name(name: str) -> str:
    """Return the name of a file in the checkpoint's own folder. Raises ValueError for any other."""
    if Path(name).name != name or name == "..":
        raise ValueError(f"names {name!r}; expected a file in its own folder")
    return name
