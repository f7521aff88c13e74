"""Memorization: facts that no sequence states, to be learned from training alone.

The last id asks for a value. Keys are the lower half of the other ids, values the upper half, paired by one fixed
shuffle: the facts are those of mad-lab, the same for every seed and split. A sequence is L / 2 times a key, drawn
uniformly, and the asking token, whose target is the key's value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.mad.tasks.protocol import IGNORE, Array, Examples

FACTS_SEED = 12345


def facts(vocab_size: int) -> Array:
    """Return the value of every key, [keys]."""
    rng = np.random.default_rng(FACTS_SEED)
    usable = vocab_size - 1
    keys, values = list(range(usable // 2)), list(range(usable // 2, usable))
    rng.shuffle(keys)
    rng.shuffle(values)
    value_of = np.empty(len(keys), dtype=np.int64)
    value_of[keys] = values[: len(keys)]
    return value_of


def memorization(setting: dict[str, Any], examples: int, training: bool, rng: np.random.Generator) -> Examples:
    """Generate inputs and targets, each [examples, seq_len]; training and evaluation do not differ."""
    value_of = facts(setting["vocab_size"])
    keys = rng.integers(len(value_of), size=(examples, setting["seq_len"] // 2))
    inputs = np.full((examples, setting["seq_len"]), setting["vocab_size"] - 1, dtype=np.int64)
    inputs[:, ::2] = keys
    targets = np.full_like(inputs, IGNORE)
    targets[:, 1::2] = value_of[keys]
    return inputs, targets
