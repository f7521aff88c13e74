"""Recurrences token by token, which the references of ops are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def run_steps(step: Callable[..., tuple[Tensor, Tensor]], state: Tensor, *sequences: Tensor) -> tuple[Tensor, Tensor]:
    """Run y, state = step(state, *tokens) over sequences [b, s, ...] in float64; return y [b, s, ...] and the state."""
    state, outputs = state.double(), []
    for tokens in zip(*(sequence.double().unbind(1) for sequence in sequences), strict=True):
        y, state = step(state, *tokens)
        outputs.append(y)
    return torch.stack(outputs, 1), state
