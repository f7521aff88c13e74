"""A bigram model of the training tokens: the yardstick for a model's validation bits per byte."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.datasets.token_dataset import TokenDataset
from hybridtron.errors import UserError

LARGEST_VOCABULARY = 1024  # of a useful yardstick: beyond it most pairs are too rare
DENSE_PAIRS = 1 << 24  # up to this many possible pairs are counted in a table, more by sorting
MAX_FIT_TOKENS = 1 << 26  # a larger corpus is represented by its first tokens
BLOCK = 1 << 22


@dataclass(frozen=True)
class Bigram:
    """log p(next | previous) in nats of every pair that was seen, and what gives it for the others."""

    vocab_size: int
    seen_pairs: np.ndarray  # [num_pairs] int64, ascending: previous * vocab_size + next
    seen_log_probs: np.ndarray  # [num_pairs]
    unseen_log_weights: np.ndarray  # [vocab_size], of the previous token
    unigram_log_probs: np.ndarray  # [vocab_size]

    def log_probs(self, previous: np.ndarray, following: np.ndarray) -> np.ndarray:
        """Compute log p(following | previous) in nats, elementwise; ids below vocab_size."""
        pairs = previous.astype(np.int64) * self.vocab_size + following
        positions = np.minimum(np.searchsorted(self.seen_pairs, pairs), len(self.seen_pairs) - 1)
        unseen = self.unseen_log_weights[previous] + self.unigram_log_probs[following]
        return np.where(self.seen_pairs[positions] == pairs, self.seen_log_probs[positions], unseen)


def fit_bigram(prefix: Path | str, vocab_size: int, smoothing: float = 1.0) -> Bigram:
    """Count the pairs of neighbouring tokens at `prefix`.

    p(b | a) = (n(a, b) + k p(b)) / (n(a) + k) with k = `smoothing` > 0 and p(b) = (n(b) + 1) / (n + vocab_size): a
    Dirichlet prior around the unigram frequencies (MacKay, Peto, A hierarchical Dirichlet language model, 1995). Raises
    UserError for an id >= vocab_size and for fewer than two tokens.
    """
    if smoothing <= 0:
        raise UserError(f"smoothing: {smoothing} leaves unseen pairs without probability; expected more than 0")
    tokens = read_index(Path(prefix)).tokens()[:MAX_FIT_TOKENS]
    if len(tokens) < 2:
        raise UserError(f"{prefix} has {len(tokens)} token; a bigram needs two")
    unigrams = np.zeros(vocab_size, np.int64)
    for start in range(0, len(tokens), BLOCK):
        block = tokens[start : start + BLOCK]
        if int(block.max()) >= vocab_size or int(block.min()) < 0:
            raise UserError(
                f"model.vocab_size = {vocab_size}: is too small for {prefix}, which holds token id {block.max()}"
            )
        unigrams += np.bincount(block, minlength=vocab_size)
    pairs, counts = _count_pairs(tokens, vocab_size)
    previous, following = pairs // vocab_size, pairs % vocab_size
    followed = unigrams.astype(np.float64)
    followed[tokens[-1]] -= 1  # nothing follows the last token
    unigram_probs = (unigrams + 1.0) / (len(tokens) + vocab_size)
    probs = (counts + smoothing * unigram_probs[following]) / (followed[previous] + smoothing)
    unseen_log_weights = math.log(smoothing) - np.log(followed + smoothing)
    return Bigram(vocab_size, pairs, np.log(probs), unseen_log_weights, np.log(unigram_probs))


def bigram_bits_per_byte(
    bigram: Bigram, dataset: TokenDataset, num_samples: int, bytes_per_token: float, isolate: bool = False
) -> float:
    """Compute the bits per byte of `bigram` on the same windows and targets that a model is evaluated on.

    `bytes_per_token` is the split's (SplitReport.bytes_per_token). With `isolate` the first tokens of documents are no
    targets.
    """
    total, targets = 0.0, 0
    rows = max(1, BLOCK // dataset.seq_len)
    for start in range(0, num_samples, rows):
        indices = np.arange(start, min(start + rows, num_samples))
        windows = dataset.eval_windows(indices, num_samples)
        log_probs = bigram.log_probs(windows[:, :-1].ravel(), windows[:, 1:].ravel())
        if isolate:
            pieces = np.concatenate(dataset.eval_documents(indices, num_samples))
            begins = np.zeros(windows.size, bool)
            begins[np.cumsum(pieces) - pieces] = True
            log_probs = log_probs[~begins.reshape(windows.shape)[:, 1:].ravel()]
        total += float(log_probs.sum())
        targets += len(log_probs)
    return -total / max(1, targets) / math.log(2) / bytes_per_token


def _count_pairs(tokens: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs in ascending order and how often each occurs."""
    dense = vocab_size**2 <= DENSE_PAIRS
    table = np.zeros(vocab_size**2 if dense else 0, np.int64)
    pairs, counts = np.empty(0, np.int64), np.empty(0, np.int64)
    for start in range(0, len(tokens) - 1, BLOCK):
        block = tokens[start : start + BLOCK + 1].astype(np.int64)
        codes = block[:-1] * vocab_size + block[1:]
        if dense:
            table += np.bincount(codes, minlength=len(table))
            continue
        new_pairs, new_counts = np.unique(codes, return_counts=True)
        pairs, inverse = np.unique(np.concatenate([pairs, new_pairs]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, new_counts])).astype(np.int64)
    if dense:
        pairs = np.flatnonzero(table)
        counts = table[pairs]
    return pairs, counts
