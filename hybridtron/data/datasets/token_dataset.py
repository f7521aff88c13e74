"""Windows of seq_len + 1 tokens out of a corpus: the infinite training order and the fixed evaluation set."""

from collections.abc import Sequence
from copy import copy
from pathlib import Path

import numpy as np

from hybridtron.data.datasets.document_starts import DocumentStarts
from hybridtron.data.datasets.hashing import mix, permute
from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.errors import UserError

# Ids are looked through up to this many tokens before training; beyond it, in evenly spread blocks of 2^20.
VOCAB_SCAN_TOKENS = 1 << 26
SCAN_BLOCK = 1 << 20


class TokenDataset:
    """The tokens at PREFIX.bin/.idx (Megatron's format) as one stream.

    Training sample i is a pure function of (seed, i): any sample is found without those before it, and the order does
    not depend on how many are taken. An epoch is `num_windows` samples, which cut the stream into windows of `seq_len`
    inputs (neighbours share one token: a window's last label is the next one's first input), in an order of its own and
    from a starting point of its own below `seq_len`.

    Raises UserError where the files are missing, truncated or foreign, or hold fewer than seq_len + 1 tokens.
    """

    def __init__(self, prefix: Path | str, seq_len: int, seed: int = 0):
        files = read_index(Path(prefix))
        if seq_len < 1:
            raise UserError(f"data.seq_len = {seq_len}: expected at least 1")
        if seq_len + 1 > files.num_tokens:
            raise UserError(
                f"data.seq_len = {seq_len}: is longer than the data: {prefix} has {files.num_tokens} tokens and a "
                f"sample takes seq_len + 1; expected at most {files.num_tokens - 1}"
            )
        self._tokens = files.tokens()
        self._documents = DocumentStarts(files)
        self._vocab_size: int | None = None
        self.prefix = Path(prefix)
        self.seq_len = seq_len
        self.seed = seed
        self.num_tokens = files.num_tokens
        # Room for any starting point below seq_len, where the data has it.
        self.num_windows = max(1, (self.num_tokens - seq_len) // seq_len)
        self.num_eval_windows = (self.num_tokens - 1) // seq_len
        self.first_eval_window = 0
        self._seed_key = mix(np.array([seed % 2**64], np.uint64))

    def samples(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read training samples, [len(indices), seq_len + 1] int64."""
        return self._read(self._starts(indices))

    def documents(self, indices: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Return, for each training sample, the lengths of the pieces of documents that its seq_len + 1 tokens consist
        of, in order. Reads no tokens."""
        return self._documents.pieces(self._starts(indices), self.seq_len + 1)

    def _starts(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the first token of each training sample in the stream, uint64."""
        epochs, positions = np.divmod(np.asarray(indices, dtype=np.uint64), np.uint64(self.num_windows))
        keys = mix(self._seed_key ^ mix(epochs))
        windows = permute(positions, self.num_windows, keys)
        num_offsets = min(self.seq_len, self.num_tokens - self.num_windows * self.seq_len)
        return windows * np.uint64(self.seq_len) + mix(~keys) % np.uint64(num_offsets)

    def eval_windows(self, indices: Sequence[int] | np.ndarray, num_samples: int) -> np.ndarray:
        """Read windows of the `num_samples` evenly spaced, non-overlapping ones, [len(indices), seq_len + 1] int64.

        They depend on the data, `seq_len` and `num_samples` alone. Raises UserError where so many do not fit.
        """
        return self._read(self._eval_starts(indices, num_samples))

    def eval_documents(self, indices: Sequence[int] | np.ndarray, num_samples: int) -> list[np.ndarray]:
        """Return, for each of the windows that `eval_windows` reads, the lengths of its pieces of documents, like
        `documents`."""
        return self._documents.pieces(self._eval_starts(indices, num_samples), self.seq_len + 1)

    def _eval_starts(self, indices: Sequence[int] | np.ndarray, num_samples: int) -> np.ndarray:
        if not 1 <= num_samples <= self.num_eval_windows:
            raise UserError(
                f"{num_samples} evaluation sequences of {self.seq_len} tokens do not fit: {self.prefix} has "
                f"{self.num_tokens} tokens, which is {self.num_eval_windows} sequences"
            )
        windows = np.asarray(indices, dtype=np.int64) * self.num_eval_windows // num_samples
        return (self.first_eval_window + windows) * self.seq_len

    def eval_half(self, half: int) -> "TokenDataset":
        """Return the same tokens with the first (0) or the second (1) half of the evaluation windows alone.

        Halves are contiguous, so that they share one document at most; a window in the middle is in neither. Raises
        UserError where there is only one window.
        """
        number = self.num_eval_windows // 2
        if not number:
            raise UserError(
                f"{self.prefix}: has 1 evaluation sequence of {self.seq_len} tokens, which cannot be halved"
            )
        found = copy(self)
        found.num_eval_windows = number
        found.first_eval_window = self.first_eval_window + half * (self.num_eval_windows - number)
        return found

    def eval_window(self, index: int, num_samples: int) -> np.ndarray:
        """Read evaluation window `index` of `num_samples`, [seq_len + 1] int64."""
        return self.eval_windows([index], num_samples)[0]

    def check_vocab(self, vocab_size: int) -> None:
        """Raise UserError for a token id outside range(vocab_size), here and for every window that is read later.

        Here all tokens of a corpus up to VOCAB_SCAN_TOKENS are read, of a larger one a sample.
        """
        self._vocab_size = vocab_size
        num_blocks = -(-self.num_tokens // SCAN_BLOCK)
        for number in np.unique(np.linspace(0, num_blocks - 1, min(num_blocks, VOCAB_SCAN_TOKENS // SCAN_BLOCK))):
            start = int(number) * SCAN_BLOCK
            self._check_ids(self._tokens[start : start + SCAN_BLOCK])

    def _read(self, starts: np.ndarray) -> np.ndarray:
        tokens = np.empty((len(starts), self.seq_len + 1), dtype=np.int64)
        for row, start in zip(tokens, starts, strict=True):
            row[:] = self._tokens[int(start) : int(start) + self.seq_len + 1]
        self._check_ids(tokens)
        return tokens

    def _check_ids(self, tokens: np.ndarray) -> None:
        if self._vocab_size is None or tokens.size == 0:
            return
        lowest, highest = int(tokens.min()), int(tokens.max())
        if lowest < 0 or highest >= self._vocab_size:
            wrong = lowest if lowest < 0 else highest
            raise UserError(
                f"model.vocab_size = {self._vocab_size}: is too small for {self.prefix}, which holds token id {wrong}; "
                "expected the vocabulary of the tokenizer that prepared it"
            )
