"""Megatron's indexed dataset files, written, checked and read without importing megatron-core.

PREFIX.bin holds the token ids of all sequences end to end. PREFIX.idx, little-endian, holds
    9 bytes   magic            8 bytes  version (1)       1 byte   dtype code
    8 bytes   sequences n      8 bytes  document marks m
    int32[n]  lengths in tokens   int64[n]  byte offsets in .bin   int64[m]  0 and the sequence that ends each document
Here every document is one sequence, so m = n + 1.
"""

import difflib
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridtron.errors import UserError
from hybridtron.files import looked_in

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")
HASHED_BLOCKS, HASHED_BYTES = 64, 4096  # of the ids, in a fingerprint
DTYPE_CODES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float64", 7: "float32", 8: "uint16"}
MAX_DOCUMENT_TOKENS = 2**31 - 1  # lengths are int32
PARTIAL_NAME = ".partial"  # in a folder whose files are being prepared


def token_dtype(vocab_size: int) -> np.dtype:
    """Return uint16 where megatron-core would choose it for this vocabulary, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def bin_path(prefix: Path) -> Path:
    """Return the file of token ids."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: Path) -> Path:
    """Return the index file."""
    return Path(f"{prefix}.idx")


def write_index(path: Path, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write an .idx file for documents of `lengths` tokens, [num_documents], that lie end to end in the .bin file."""
    code = next(code for code, name in DTYPE_CODES.items() if name == dtype.name)
    ends = np.cumsum(lengths, dtype=np.int64) * dtype.itemsize
    with path.open("wb") as file:
        file.write(HEADER.pack(MAGIC, VERSION, code, len(lengths), len(lengths) + 1))
        file.write(np.asarray(lengths, dtype="<i4").tobytes())
        file.write((ends - lengths.astype(np.int64) * dtype.itemsize).astype("<i8").tobytes())
        file.write(np.arange(len(lengths) + 1, dtype="<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class IndexedFiles:
    """A checked pair of .bin and .idx files."""

    prefix: Path
    dtype: np.dtype
    num_documents: int
    num_tokens: int
    num_sequences: int

    def tokens(self) -> np.ndarray:
        """Return all token ids as one memory-mapped stream, [num_tokens], that cannot be written to."""
        return np.memmap(bin_path(self.prefix), dtype=self.dtype.newbyteorder("<"), mode="r").view(np.ndarray)


def read_index(prefix: Path) -> IndexedFiles:
    """Read the index at `prefix` and compare it with the sizes of both files.

    Raises UserError for a missing, foreign, truncated or empty file, for sequences that do not lie end to end, and for
    documents that do not end where sequences do.
    """
    for path in (idx_path(prefix), bin_path(prefix)):
        if not path.is_file():
            raise UserError(f"no token data at {str(prefix)!r}: there is no {path}{looked_in(path)}{_advice(prefix)}")
    path, size = idx_path(prefix), idx_path(prefix).stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC[: len(head)]:
        raise UserError(f"{path} is not a Megatron index: it does not begin with {MAGIC!r}")
    if len(head) < HEADER.size:
        raise UserError(f"{path} is truncated: {size} bytes, its header alone has {HEADER.size}")
    _, version, code, num_sequences, num_marks = HEADER.unpack(head)
    if version != VERSION or code not in DTYPE_CODES or DTYPE_CODES[code].startswith("float"):
        raise UserError(f"{path} has version {version} and dtype code {code}; expected version 1 and integer tokens")
    expected = HEADER.size + 12 * num_sequences + 8 * num_marks
    if size < expected:
        raise UserError(f"{path} is truncated: {size} bytes, {num_sequences} sequences need {expected}")
    dtype = np.dtype(DTYPE_CODES[code])
    lengths = np.fromfile(path, dtype="<i4", count=num_sequences, offset=HEADER.size)
    if num_sequences and lengths.min() < 0:
        raise UserError(f"{path}: sequence {lengths.argmin()} has the length {lengths.min()}; expected at least 0")
    num_tokens = int(lengths.sum(dtype=np.int64))
    in_bin, needed = bin_path(prefix).stat().st_size, num_tokens * dtype.itemsize
    if in_bin != needed:
        what = "truncated" if in_bin < needed else "too long"
        raise UserError(
            f"{bin_path(prefix)} is {what}: {in_bin} bytes, but its index lists {num_tokens} tokens = {needed} bytes"
        )
    if num_tokens == 0:
        raise UserError(f"{bin_path(prefix)} holds no tokens")
    offsets = np.fromfile(path, dtype="<i8", count=num_sequences, offset=HEADER.size + 4 * num_sequences)
    if offsets[0] != 0 or not np.array_equal(np.diff(offsets), lengths[:-1].astype(np.int64) * dtype.itemsize):
        raise UserError(f"{path}: its sequences do not lie end to end in {bin_path(prefix).name}")
    marks = np.fromfile(path, dtype="<i8", count=num_marks, offset=HEADER.size + 12 * num_sequences)
    if num_marks == 0 or marks[0] != 0 or marks[-1] != num_sequences or (np.diff(marks) < 0).any():
        raise UserError(f"{path}: its document marks do not lead from 0 to its {num_sequences} sequences")
    return IndexedFiles(prefix, dtype, num_marks - 1, num_tokens, num_sequences)


def fingerprint(prefix: Path) -> str:
    """Hash the number, the lengths and the ids of the documents at `prefix`, which read_index accepts.

    The index is hashed whole, the ids in HASHED_BLOCKS evenly spread blocks: large files take no longer.
    """
    digest = hashlib.blake2b(digest_size=16)
    with idx_path(prefix).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    size = bin_path(prefix).stat().st_size
    with bin_path(prefix).open("rb") as file:
        for number in range(HASHED_BLOCKS):
            file.seek(max(0, size - HASHED_BYTES) * number // (HASHED_BLOCKS - 1))
            digest.update(file.read(HASHED_BYTES))
    return digest.hexdigest()


def _advice(prefix: Path) -> str:
    """Return advice about a missing prefix: the likeliest reason, or the nearest existing name."""
    if prefix.suffix in (".bin", ".idx") and prefix.is_file():
        return f"; give the prefix without its suffix: {str(prefix.with_suffix(''))!r}"
    if prefix.is_dir() and (found := sorted(str(path.with_suffix("")) for path in prefix.glob("*.idx"))):
        return (
            f"; it is a folder: give the path of tokens in it without their suffix: {' or '.join(map(repr, found[:5]))}"
        )
    if (prefix.parent / PARTIAL_NAME).is_dir():
        return f"; {prefix.parent} is only partly prepared: run the same tools/prepare_data.py command again"
    folder = prefix.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    # A mistyped folder name is found from its parent, so look one level down as well.
    found = sorted(str(p.with_suffix("")) for pattern in ("*.idx", "*/*.idx") for p in folder.glob(pattern))
    nearest = difflib.get_close_matches(str(prefix), found, n=1, cutoff=0.0)
    return f"; the nearest there is: {nearest[0]!r}" if nearest else ""
