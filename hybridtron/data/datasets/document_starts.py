"""Where documents begin in a stream of tokens, as the document marks of an index file say."""

from __future__ import annotations

import numpy as np

from hybridtron.data.datasets.indexed_dataset import HEADER, IndexedFiles, idx_path


class DocumentStarts:
    """The first token of every document, read from the memory-mapped index: it takes no memory of its own."""

    def __init__(self, files: IndexedFiles) -> None:
        path, sequences, self._count = idx_path(files.prefix), files.num_sequences, files.num_documents
        self._offsets = np.memmap(path, "<i8", "r", HEADER.size + 4 * sequences, (sequences,)).view(np.ndarray)
        self._marks = np.memmap(path, "<i8", "r", HEADER.size + 12 * sequences, (self._count + 1,)).view(np.ndarray)
        self._num_tokens, self._itemsize = files.num_tokens, files.dtype.itemsize

    def pieces(self, starts: np.ndarray, length: int) -> list[np.ndarray]:
        """Return, for the `length` tokens from each of `starts` on, the lengths of the pieces of documents, in order.

        They are at least 1 and add up to `length`.
        """
        starts = np.asarray(starts, dtype=np.int64)
        first, after = self._number_before(starts + 1), self._number_before(starts + length)
        pieces = []
        for start, low, high in zip(starts.tolist(), first.tolist(), after.tolist(), strict=True):
            bounds = np.concatenate([[start], self._begin(np.arange(low, high)), [start + length]])
            lengths = np.diff(bounds)
            pieces.append(lengths[lengths > 0])  # documents without tokens
        return pieces

    def _number_before(self, tokens: np.ndarray) -> np.ndarray:
        """Return how many documents begin before each of the tokens, by bisection. numpy's own would copy the index,
        whose numbers are not aligned."""
        low, high = np.zeros_like(tokens), np.full_like(tokens, self._count)
        for _ in range(self._count.bit_length()):
            middle = (low + high) // 2
            before = (low < high) & (self._begin(middle.clip(max=self._count - 1)) < tokens)
            low, high = np.where(before, middle + 1, low), np.where(before, high, middle)
        return low

    def _begin(self, documents: np.ndarray) -> np.ndarray:
        """Return the first token of each document."""
        sequences = self._marks[documents]
        inside = sequences < len(self._offsets)
        found = self._offsets[np.where(inside, sequences, 0)] // self._itemsize
        return np.where(inside, found, self._num_tokens)
