"""The text inside input files: lines of .jsonl, plain or compressed, and what can be saved of damaged ones."""

import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from hybridtron.errors import UserError

LONGEST_LINE = 4 << 20  # bytes of a line in memory; a longer one is a LongLine
BLOCK = 1 << 20


class DamagedLine(Exception):
    """A line that holds no document. Its text says why."""


@dataclass(frozen=True)
class LongLine:
    """A line that is too long for memory: bytes [start, end) of an open file."""

    file: IO[bytes]
    start: int
    end: int

    def read(self, position: int, size: int) -> bytes:
        """Read `size` bytes from `position` of the file, fewer at the end of the line."""
        return os.pread(self.file.fileno(), min(size, self.end - position), position)


class DamagedArchive(Exception):
    """A compressed file that stops making sense. `rest` is what was read of its last line."""

    def __init__(self, reason: str, rest: bytes | LongLine):
        super().__init__(reason)
        self.rest = rest


def read_lines(
    path: Path, start: int, end: int, on_bytes: Callable[[int], None], work_folder: Path | None = None
) -> Iterator[bytes | LongLine]:
    """Yield the lines that begin in bytes [start, end) of `path`, without their line feed; of a compressed file, all.

    A LongLine is valid until the next line is read; of a compressed file it lies in a temporary file in `work_folder`.
    `on_bytes` is called with the bytes of the file read since its last call. Raises DamagedArchive after the last
    whole line of a compressed file that is cut short or corrupt.
    """
    if path.name.endswith((".gz", ".zst")):
        yield from _split(_decompress(path, on_bytes), work_folder)
        return
    with path.open("rb", buffering=BLOCK) as file:
        if start > 0:
            file.seek(start - 1)
            _skip_line(file)  # the rest of a line that begins before `start`
        while (position := file.tell()) < end and (line := file.readline(LONGEST_LINE)):
            ended = line.endswith(b"\n") or _skip_line(file)
            on_bytes(file.tell() - position)
            if file.tell() - position == len(line):
                yield line.removesuffix(b"\n")
            else:
                yield LongLine(file, position, file.tell() - ended)


def _skip_line(file: IO[bytes]) -> bool:
    """Read to the end of the line; return False where the file ends without a line feed."""
    while block := file.readline(BLOCK):
        if block.endswith(b"\n"):
            return True
    return False


def parse_document(line: bytes, json_key: str) -> str:
    """Return the text under `json_key` of one JSON line. Raises DamagedLine where there is none."""
    try:
        value: Any = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DamagedLine(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise DamagedLine("not JSON that can be read: nested too deeply") from None
    except ValueError as error:
        raise DamagedLine(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedLine(f"not a JSON object but {type(value).__name__}")
    if json_key not in value:
        raise DamagedLine(f"no key {json_key!r}; there is {', '.join(map(repr, list(value)[:5])) or 'none'}")
    text = value[json_key]
    if not isinstance(text, str):
        raise DamagedLine(f"the value of {json_key!r} is not text but {type(text).__name__}")
    return text


def _split(blocks: Iterator[bytes], work_folder: Path | None) -> Iterator[bytes | LongLine]:
    parts: list[bytes] = []
    size = 0
    long: IO[bytes] | None = None

    def add(part: bytes) -> None:
        nonlocal long, size
        parts.append(part)
        size += len(part)
        if size > LONGEST_LINE:
            long = long or tempfile.TemporaryFile(dir=work_folder)  # noqa: SIM115  # closed when the next line begins
            long.writelines(parts)
            parts.clear()

    def line() -> bytes | LongLine:
        if long is None:
            return b"".join(parts)
        long.flush()
        return LongLine(long, 0, size)

    try:
        for block in blocks:
            first, *others = block.split(b"\n")
            add(first)
            for other in others:
                yield line()
                parts.clear()
                size, long = 0, None
                add(other)
    except (zlib.error, _Corrupt) as error:
        raise DamagedArchive(str(error), line()) from None
    if size:
        yield line()


class _Corrupt(Exception):
    pass


def _decompress(path: Path, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """Yield blocks of the decompressed text, as many as can be had: all members or frames, one after the other."""
    is_gzip = path.name.endswith(".gz")
    # An error loses what the same call had already decompressed: gzip steps back for it, zstd takes small steps.
    step = 1 << 16 if is_gzip else 1 << 13
    stream: Any = None
    with path.open("rb") as file:
        while block := file.read(step):
            on_bytes(len(block))
            while block:
                if stream is None:
                    if is_gzip and not (block := block.lstrip(b"\0")):  # gzip allows zeros between and after members
                        break
                    stream = zlib.decompressobj(wbits=31) if is_gzip else _zstd_stream()
                yield from _inflate(stream, block) if is_gzip else _unzstd(stream, block)
                block, stream = (stream.unused_data, None) if stream.eof else (b"", stream)
    if stream is not None:
        raise _Corrupt(f"the archive is cut short after {path.stat().st_size} bytes")


def _inflate(stream: Any, block: bytes) -> Iterator[bytes]:
    before = stream.copy()
    try:
        text = stream.decompress(block)
    except zlib.error as error:
        for i in range(len(block)):
            try:
                yield before.decompress(block[i : i + 1])
            except zlib.error:
                break
        raise _Corrupt(f"the archive is corrupt: {error}") from None
    yield text


def _zstd_stream() -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError("reading .zst files needs the package zstandard") from None
    return zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()


def _unzstd(stream: Any, block: bytes) -> Iterator[bytes]:
    import zstandard

    try:
        text = stream.decompress(block)
    except zstandard.ZstdError as error:
        raise _Corrupt(f"the archive is corrupt: {error}") from None
    yield text
