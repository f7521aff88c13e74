"""The tokenizer whose ids are the bytes of the text."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np


class ByteTokenizer:
    """Ids 0-255 are the bytes of UTF-8 text, 256 is the end of a document."""

    name = "byte"
    fingerprint = "byte-257"
    vocab_size = 257
    eod = 256

    def encode(self, text: str) -> np.ndarray:
        return self.encode_bytes(text.encode("utf-8"))

    def encode_pieces(self, pieces: Iterable[str]) -> Iterator[np.ndarray]:
        return map(self.encode, pieces)

    def encode_bytes(self, data: bytes) -> np.ndarray:
        """Encode bytes as they are, UTF-8 or not."""
        return np.frombuffer(data, dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        # A model whose vocabulary is padded can emit ids past 256; they stand for no byte either.
        return bytes(i for i in map(int, ids) if i < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> None:
        """Write nothing: `byte` needs no file."""
