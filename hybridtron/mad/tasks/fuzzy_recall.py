"""Fuzzy in-context recall: keys and values are motifs of one to three tokens.

The last id pads; of the others the lower half make keys, the upper half values. A motif is an ordered tuple of distinct
ids. Value motifs have one to three tokens, key motifs too in training and three otherwise. A probe pair is drawn first,
then pairs fill the sequence: the probe goes in where the sequence reaches a drawn place, unless its key has come up by
itself. The probe pair ends the sequence, which is padded on the left to L + 1 tokens. In training every next token is a
target, pads too; else all tokens of the values whose key has been shown before, and the final value.

mad-lab lists and shuffles all motifs for every example; drawing a motif token by token has the same distribution.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.mad.tasks.protocol import IGNORE, LARGEST_MOTIF, Array, Examples
from hybridtron.mad.tasks.recall import first_occurrence

_BLOCK = 1 << 16  # slots in work at a time: their arrays stay in a core's cache
_BITS, _SIZE = 16, 48  # of a token in a packed motif, and where its size begins
_TOKEN = (1 << _BITS) - 1
_SCORED = 1 << 62  # marks a value that an evaluation scores, and its tokens


def _slots(length: int, mean_pair: int) -> int:
    """Return how many slots to draw at first: about as many as a sequence needs, and some."""
    return length // mean_pair + length // 24 + 24


def fuzzy_recall(setting: dict[str, Any], examples: int, training: bool, rng: np.random.Generator) -> Examples:
    """Generate inputs and targets, each [examples, seq_len]."""
    length = setting["seq_len"]
    inputs = np.empty((examples, length), dtype=np.int64)
    targets = np.empty((examples, length), dtype=np.int64)
    rows = max(1, _BLOCK // _slots(length, 4))
    for start in range(0, examples, rows):
        part = slice(start, min(start + rows, examples))
        tokens, scored = _sequences(setting, part.stop - part.start, training, rng)
        inputs[part] = tokens[:, :-1]
        targets[part] = tokens[:, 1:] if training else np.where(scored, tokens, IGNORE)[:, 1:]
    return inputs, targets


def _motifs(low: int, high: int, smallest: int, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw motifs of distinct ids in [low, high), packed: tokens from the lowest bits up, then the size."""
    count = high - low
    first, second, third = (rng.integers(count - taken, size=shape, dtype=np.int32) for taken in range(LARGEST_MOTIF))
    second += second >= first  # skip what is taken, lowest first
    third += third >= np.minimum(first, second)
    third += third >= np.maximum(first, second)
    if smallest == LARGEST_MOTIF:
        size = np.full(shape, LARGEST_MOTIF, dtype=np.int32)
    else:
        size = rng.integers(smallest, LARGEST_MOTIF + 1, size=shape, dtype=np.int32)
    packed = (size.astype(np.int64) << _SIZE) | (first + low)
    packed |= np.where(size > 1, second + low, 0).astype(np.int64) << _BITS
    packed |= np.where(size > 2, third + low, 0).astype(np.int64) << 2 * _BITS
    return packed


def _sequences(
    setting: dict[str, Any], rows: int, training: bool, rng: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """Generate tokens [rows, L + 1], and a mask of those that an evaluation scores."""
    length, pad = setting["seq_len"], setting["vocab_size"] - 1
    num_keys = pad // 2

    def draw(shape: tuple[int, ...]) -> tuple[Array, Array]:
        keys = _motifs(0, num_keys, 1 if training else LARGEST_MOTIF, shape, rng)
        return keys, _motifs(num_keys, pad, 1, shape, rng)

    probe_key, probe_value = draw((rows,))
    probe_size = (probe_key >> _SIZE) + (probe_value >> _SIZE)
    place = rng.integers(length - 2 * probe_size)  # from where on the probe goes in
    room = length - probe_size - 2 * LARGEST_MOTIF  # a pair is added while the sequence is shorter

    drawn: list[tuple[Array, Array]] = []
    while True:
        drawn.append(draw((rows, _slots(length, 4 if training else 5))))
        key, value = (np.concatenate(parts, 1) for parts in zip(*drawn, strict=True))
        first = first_occurrence(key)
        is_probe = key == probe_key[:, None]
        # A key keeps the value with which it first appears; the probe's is set.
        value = np.where(is_probe, probe_value[:, None], np.take_along_axis(value, first, 1))
        size = (key >> _SIZE) + (value >> _SIZE)
        end = size.cumsum(1)
        if (end[:, -1] >= room).all():
            break

    # The probe stands before the first pair that would begin at its place or later, unless its key came up before.
    begin, slot, row = end - size, np.arange(end.shape[1]), np.arange(rows)
    at = (begin >= place[:, None]).argmax(1)
    probe_begin = begin[row, at]
    inserted = (probe_begin >= place) & (probe_begin < room) & ~(is_probe & (slot < at[:, None])).any(1)
    later = inserted[:, None] & (slot >= at[:, None])
    begin += later * probe_size[:, None]
    used = begin < room[:, None]
    seen = (first < slot) | (later & is_probe)
    total = np.where(used, begin + size, 0).max(1)
    total = np.maximum(total, np.where(inserted, probe_begin + probe_size, 0))

    tokens = np.full(rows * (length + 1), pad, dtype=np.int64)
    origin = row * (length + 1) + length + 1 - (total + probe_size)  # pads on the left
    everywhere = np.ones(rows, dtype=bool)
    for begins, chosen, keys, values in (
        (begin, used, key, value | seen * _SCORED),
        (probe_begin, inserted, probe_key, probe_value),
        (total, everywhere, probe_key, probe_value | _SCORED),
    ):
        start = (begins.T + origin).T[chosen]
        _put(tokens, start, keys[chosen])
        _put(tokens, start + (keys[chosen] >> _SIZE), values[chosen])
    tokens = tokens.reshape(rows, -1)
    return tokens & _TOKEN, tokens >= _SCORED


def _put(tokens: Array, start: Array, motif: Array) -> None:
    """Write motifs into the flat `tokens` from `start` on, each token with the motif's mark of what is scored."""
    for i in range(LARGEST_MOTIF):
        some = slice(None) if i == 0 else np.flatnonzero((motif & ~_SCORED) >> _SIZE > i)
        tokens[start[some] + i] = motif[some] >> i * _BITS & _TOKEN | motif[some] & _SCORED
