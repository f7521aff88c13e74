"""Rotary frequencies stretched to sequences longer than a model was first trained on."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def llama3_frequencies(frequencies: Tensor, factor: float, low: float, high: float, length: int) -> Tensor:
    """Divide by `factor` the frequencies that turn fewer than `low` times in `length` tokens, not those above `high`.

    Those between are blended by their number of turns (Llama 3.1, arXiv 2407.21783).
    """
    turns = length * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # share that stays as it is
    return frequencies * (kept + (1 - kept) / factor)


def yarn_frequencies(
    frequencies: Tensor, base: float, factor: float, fast: float, slow: float, length: int, truncate: bool
) -> Tensor:
    """Divide by `factor` the frequencies below those that turn `slow` times in `length` tokens, not those above `fast`.

    Those between are blended by their index, whose ends are whole numbers with `truncate` (YaRN, arXiv 2309.00071,
    equation 17).
    """
    half = len(frequencies)

    def index(turns: float) -> float:
        return half * math.log(length / (turns * 2 * math.pi)) / math.log(base)

    first, last = index(fast), index(slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * half - 1)
    last += 0.001 if first == last else 0
    indices = torch.arange(half, dtype=frequencies.dtype, device=frequencies.device)
    divided = ((indices - first) / (last - first)).clamp(0, 1)  # share that is divided
    return frequencies * (divided / factor + 1 - divided)
