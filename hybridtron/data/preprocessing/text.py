"""The text of one document, in blocks of bytes and in pieces of decoded text."""

import codecs
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

from hybridtron.data.preprocessing.documents import BLOCK

PIECE = 1 << 17  # bytes that are decoded at once
MARKS = (  # byte order marks; UTF-32 first, since its mark begins like that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


class TextFile:
    """A text file, read once: whether any UTF-16 or UTF-32 of it was `repaired` so far.

    `on_bytes` is called with the bytes of the file read since its last call.
    """

    def __init__(self, path: Path, on_bytes: Callable[[int], None]) -> None:
        self._path, self._on_bytes = path, on_bytes
        self.repaired = False

    def blocks(self) -> Iterator[bytes]:
        """Yield the content in blocks, without its byte order mark, and UTF-16 and UTF-32 as UTF-8."""
        with self._path.open("rb") as file:
            head = file.read(4)
            mark, encoding = next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", "utf-8"))
            file.seek(len(mark))
            self._on_bytes(len(mark))
            blocks = self._read(file)
            yield from blocks if encoding == "utf-8" else self._decoded(blocks, encoding)

    def _read(self, file: IO[bytes]) -> Iterator[bytes]:
        while block := file.read(BLOCK):
            self._on_bytes(len(block))
            yield block

    def _decoded(self, blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
        """Yield blocks of UTF-8, with U+FFFD in place of what is not of the encoding."""
        decoder = codecs.getincrementaldecoder(encoding)("replace")
        pending = b""  # the first bytes of a character that the next block ends
        for block in blocks:
            text, given = decoder.decode(block), pending + block
            pending = decoder.getstate()[0]
            self.repaired |= text.encode(encoding) != given[: len(given) - len(pending)]
            yield text.encode()
        self.repaired |= bool(pending)
        yield decoder.decode(b"", True).encode()


class DocumentText:
    """The text of a document in blocks of UTF-8, read once: `num_bytes` so far, and whether any were `repaired`."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.num_bytes = 0
        self.repaired = False

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes as they are."""
        for block in self._blocks:
            for start in range(0, len(block), PIECE):
                part = block[start : start + PIECE]
                self.num_bytes += len(part)
                yield part

    def pieces(self) -> Iterator[str]:
        """Yield decoded text, with U+FFFD in place of what is no UTF-8, and note that in `repaired`."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pending = b""  # the first bytes of a character that the next block ends
        for block in self.blocks():
            piece, given = decoder.decode(block), pending + block
            pending = decoder.getstate()[0]
            self.repaired |= piece.encode() != given[: len(given) - len(pending)]
            yield piece
        if pending:
            self.repaired = True
            yield decoder.decode(b"", True)
