"""How operations cut sequences into blocks, chunks and segments. Imports no torch: FLOPs are counted from it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

QUERIES = 64  # per block: larger wastes matmuls above the diagonal, smaller makes them inefficient
DIRECT_TAPS = 20  # that are added up one by one
SEGMENT = 3  # filter lengths in a segment
PAIRS_FACTOR = 6  # d^2 tokens; pairs are as fast as transforms at 6 (d = 8), 8 (16), 9 (32) and 4.5 d^2 (64) on a core
TILE_ROWS = 128  # queries of a tile: more waste matmuls above the diagonal, fewer make them inefficient
GLA_BLOCK = 4  # tokens of a block of gated linear attention that is no longer halved


def runs(length: int, step: int) -> Iterator[slice]:
    """Yield slices of `step`, the last one shorter, that cover `range(length)`."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class QueryBlock(NamedTuple):
    """Queries [start, stop), the keys [first, last) that any of them sees, and the key from which a mask is needed.

    A query stands at a key and sees the `window` keys up to it, or all without a window.
    """

    start: int
    stop: int
    first: int
    last: int
    masked: int
    window: int | None

    @property
    def num_queries(self) -> int:
        """Return how many queries the block has."""
        return self.stop - self.start

    @property
    def position(self) -> int:
        """Return the key at which the first query stands."""
        return self.last - self.num_queries

    @property
    def num_keys(self) -> int:
        """Return how many keys the block's queries see between them."""
        return self.last - self.first


def query_blocks(num_queries: int, num_keys: int, window: int | None) -> list[QueryBlock]:
    """Cut the queries, the last of which stands at the last key, into blocks."""
    ahead = num_keys - num_queries  # query i stands at key i + ahead
    blocks = []
    for run in runs(num_queries, QUERIES):
        first = 0 if window is None else max(0, run.start + ahead - window + 1)
        masked = run.start + ahead if window is None else first
        blocks.append(QueryBlock(run.start, run.stop, first, run.stop + ahead, masked, window))
    return blocks


def chunks_of(seq_len: int, chunk_size: int) -> tuple[int, int]:
    """Return the fewest chunks of at most `chunk_size` tokens, and their length: 300 tokens by 256 are 2 of 150."""
    count = -(-seq_len // chunk_size)
    return count, -(-seq_len // count)


def binary_chunks(seq_len: int, chunk_size: int) -> tuple[int, int]:
    """Return the fewest chunks of at most `chunk_size` tokens, a power of two, and their equal length, another."""
    count = -(-seq_len // chunk_size)
    return count, 1 << (-(-seq_len // count) - 1).bit_length()


def delta_rule_chunks(seq_len: int, chunk_size: int) -> tuple[int, int]:
    """Return `binary_chunks` with at least two tokens, between which there is something to solve."""
    count, length = binary_chunks(seq_len, chunk_size)
    return count, max(2, length)


def fft_size(least: int) -> int:
    """Return the smallest of 1, 3, 5, 9 and 15 times a power of two, even and not below `least`."""
    return min(odd << max(1, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


def segment_length(seq_len: int, taps: int) -> int:
    """Return how many tokens a filter of so many taps is applied to at a time: the whole sequence if it is short."""
    length = SEGMENT * taps
    return length if 2 * length < seq_len else seq_len


def modal_filter_shape(length: int) -> tuple[int, int]:
    """Return into how many lags, and how many multiples of them, a length is cut."""
    rest = math.isqrt(length - 1) + 1
    return rest, -(-length // rest)


def num_pairs(seq_len: int) -> int:
    """Count the pairs of queries and keys in tiles of queries, each with the keys up to its last query."""
    return sum((rows.stop - rows.start) * rows.stop for rows in runs(seq_len, TILE_ROWS))


def takes_pairs(seq_len: int, head_dim: int) -> bool:
    """Return whether convolutions of outer products go by pairs of tokens, not by Fourier transforms."""
    return seq_len <= PAIRS_FACTOR * head_dim * head_dim
