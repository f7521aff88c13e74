"""Compression: rebuild a random sequence from the state at its last position.

The last id is the compression token, which ends the sequence. Every position is scored, the last one too, as in
mad-lab.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.mad.tasks.protocol import Examples


def compression(setting: dict[str, Any], examples: int, training: bool, rng: np.random.Generator) -> Examples:
    """Generate inputs and targets, each [examples, seq_len] and equal; training and evaluation do not differ."""
    last = setting["vocab_size"] - 1
    inputs = rng.integers(last, size=(examples, setting["seq_len"]))
    inputs[:, -1] = last
    return inputs, inputs.copy()
