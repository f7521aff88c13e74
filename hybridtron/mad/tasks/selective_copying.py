"""Selective copying: repeat the content tokens, in order, without the blanks between them.

The last id asks for the copy, the one before is the blank. L - 2n - 1 blanks go before the n content tokens, each
before one drawn uniformly, so that none follows the last; then come the copy token and n blanks, whose targets are the
content tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hybridtron.mad.tasks.protocol import IGNORE, Examples


def selective_copying(setting: dict[str, Any], examples: int, training: bool, rng: np.random.Generator) -> Examples:
    """Generate inputs and targets, each [examples, seq_len]; training and evaluation do not differ."""
    length, count = setting["seq_len"], setting["num_tokens_to_copy"]
    copy, blank = setting["vocab_size"] - 1, setting["vocab_size"] - 2
    content = rng.integers(blank, size=(examples, count))
    before = rng.integers(count, size=(examples, length - 2 * count - 1))  # which content token each blank precedes
    rows = np.arange(examples)[:, None]
    blanks = np.bincount((before + count * rows).ravel(), minlength=examples * count).reshape(examples, count)
    inputs = np.full((examples, length), blank, dtype=np.int64)
    inputs[rows, np.arange(count) + blanks.cumsum(1)] = content
    inputs[:, length - count - 1] = copy
    targets = np.full((examples, length), IGNORE, dtype=np.int64)
    targets[:, length - count :] = content
    return inputs, targets
