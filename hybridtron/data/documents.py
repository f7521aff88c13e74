"""The text inside input files: lines of .jsonl, plain or compressed, and what can be saved of damaged ones."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError


class DamagedLine(Exception):
    """A line that holds no document. Its text says why."""


class DamagedArchive(Exception):
    """A compressed file that stops making sense. `rest` is what was read of its last line."""

    def __init__(self, reason: str, rest: bytes):
        super().__init__(reason)
        self.rest = rest


def read_lines(path: Path, start: int, end: int, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    """Yield the lines that begin in bytes [start, end) of `path`, without their line feed; of a compressed file, all.

    `on_bytes` is called with the bytes of the file read since its last call. Raises DamagedArchive after the last
    whole line of a compressed file that is cut short or corrupt.
    """
    if path.name.endswith((".gz", ".zst")):
        yield from _split(_decompress(path, on_bytes))
        return
    with path.open("rb", buffering=1 << 20) as file:
        position = start
        if start > 0:
            file.seek(start - 1)
            position += len(file.readline()) - 1  # the rest of a line that begins before `start`
        while position < end and (line := file.readline()):
            position += len(line)
            on_bytes(len(line))
            yield line.removesuffix(b"\n")


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


def _split(blocks: Iterator[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []
    try:
        for block in blocks:
            first, *others = block.split(b"\n")
            parts.append(first)
            for other in others:
                yield b"".join(parts)
                parts = [other]
    except (zlib.error, _Corrupt) as error:
        raise DamagedArchive(str(error), b"".join(parts)) from None
    if any(parts):
        yield b"".join(parts)


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
