"""Recurrences: token by token, which the references of ops are, and what decays leave of a state."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_map

State = TypeVar("State")  # a tensor, or a tuple of them


def run_steps(step: Callable[..., tuple[Tensor, State]], state: State, *sequences: Tensor) -> tuple[Tensor, State]:
    """Run y, state = step(state, *tokens) over sequences [b, s, ...] in float64; return y [b, s, ...] and the state."""
    state, outputs = tree_map(Tensor.double, state), []
    for tokens in zip(*(sequence.double().unbind(1) for sequence in sequences), strict=True):
        y, state = step(state, *tokens)
        outputs.append(y)
    return torch.stack(outputs, 1), state


def sums_around(log_decays: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for each token of [b, s, ...], the sum up to and with it, and the sum of those after it.

    Their exponentials say what is left at the token of the state before the first one, and after the last one of what
    the token added.
    """
    later = F.pad(log_decays[:, 1:], (0, 0) * (log_decays.dim() - 2) + (0, 1))
    return log_decays.cumsum(1), later.flip(1).cumsum(1).flip(1)
