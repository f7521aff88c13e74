"""In-context recall, and its noisy form: what value came after this key?

Keys are the lower half of the ids, values the upper half; with noise the topmost `noise_vocab_size` ids are noise.
A sequence is L / 2 - 1 slots of two tokens and a final pair. A slot is a pair (key, the value of that key in this
sequence) or, with probability `frac_noise`, two noise tokens; one slot drawn over all L / 2 is never noise. The final
key is drawn among the distinct keys shown. In training every next token is a target, else the values whose key has
been shown before (Arora et al. 2023, arXiv 2312.04927; Poli et al. 2024, arXiv 2403.17844).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.mad.tasks.protocol import IGNORE, Examples


def in_context_recall(setting: dict[str, Any], examples: int, training: bool, rng: np.random.Generator) -> Examples:
    """Generate inputs and targets, each [examples, seq_len - 1]."""
    noise_ids, fraction = setting.get("noise_vocab_size", 0), setting.get("frac_noise", 0.0)
    usable = setting["vocab_size"] - noise_ids
    num_keys, slots = usable // 2, setting["seq_len"] // 2 - 1
    rows = np.arange(examples)

    keys = rng.integers(num_keys, size=(examples, slots))
    values_of = rng.integers(num_keys, usable, size=(examples, num_keys))  # of every key, shown or not
    noise = _noise_slots(examples, slots, fraction, rng)
    # A slot of noise stands for a key of its own, which no other slot has.
    codes = np.where(noise, num_keys + np.arange(slots), keys)
    shown_first = first_occurrence(codes) == np.arange(slots)
    new = shown_first & ~noise

    # The final key: the n-th of the distinct keys shown, in the order of their first appearance.
    count = new.sum(1)
    nth = rng.integers(count)
    where = (new.cumsum(1) > nth[:, None]).argmax(1)
    final_key = keys[rows, where]

    sequence = np.empty((examples, slots + 1, 2), dtype=np.int64)
    sequence[:, :slots, 0] = keys
    sequence[:, :slots, 1] = np.take_along_axis(values_of, keys, axis=1)
    if fraction:
        drawn = rng.integers(usable, usable + noise_ids, size=(examples, slots, 2))
        np.copyto(sequence[:, :slots], drawn, where=noise[:, :, None])
    sequence[:, slots, 0] = final_key
    sequence[:, slots, 1] = values_of[rows, final_key]
    tokens = sequence.reshape(examples, -1)
    if training:
        return tokens[:, :-1].copy(), tokens[:, 1:].copy()
    scored = np.zeros(sequence.shape, dtype=bool)
    scored[:, :slots, 1] = ~shown_first
    scored[:, slots, 1] = True
    return tokens[:, :-1].copy(), np.where(scored.reshape(examples, -1), tokens, IGNORE)[:, 1:]


def _noise_slots(examples: int, slots: int, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw which slots are noise; rows of noise alone are drawn again, since a sequence needs a key."""
    noise = np.zeros((examples, slots), dtype=bool)
    rows = np.arange(examples) if fraction else np.arange(0)
    while len(rows):
        drawn = rng.random((len(rows), slots)) < fraction
        spared = rng.integers(slots + 1, size=len(rows))  # the final pair may be the one that is spared
        drawn[spared[:, None] == np.arange(slots)] = False
        noise[rows] = drawn
        rows = rows[drawn.all(1)]
    return noise


def first_occurrence(codes: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return, for each entry of codes [rows, columns] (from 0), the first column of its row with the same code.

    Columns are packed below the codes and sorted with them, so the product of both must stay within 63 bits.
    """
    columns = codes.shape[1]
    bits = max(columns - 1, 1).bit_length()
    packed = np.sort((codes << bits) | np.arange(columns), axis=1)
    column = (packed & ((1 << bits) - 1)).astype(np.intp)
    code = packed >> bits
    begins = np.ones(codes.shape, dtype=bool)
    begins[:, 1:] = code[:, 1:] != code[:, :-1]
    start = np.maximum.accumulate(np.where(begins, np.arange(columns), 0), axis=1)  # of the run of equal codes
    first = np.empty(codes.shape, dtype=np.intp)
    np.put_along_axis(first, column, np.take_along_axis(column, start, axis=1), axis=1)
    return first
