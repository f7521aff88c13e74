"""Sizes, random inputs and the loop over tokens that forms of several operations share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

HEADS, WIDTH, CHANNELS, STATES, WINDOW, CHUNK = 4, 64, 256, 16, 256, 64
SOFTCAP = 50.0

Form = Callable[..., Tensor]


class Op(NamedTuple):
    """`inputs` makes the arguments for a length; all forms take them."""

    inputs: Callable[[int], list[Tensor]]
    ours: Form
    naive: Form
    public: Form | None
    named: str  # the public one
    logarithmic: bool = True


def scan(step: Callable[..., tuple[Tensor, Tensor]], state: tuple[int, ...], moving: int, *arguments: Any) -> Tensor:
    """A recurrence token by token; the first `moving` arguments have a token axis [b, s, ...]."""
    carried, outputs = torch.zeros(1, *state), []
    for tokens in zip(*(tensor.unbind(1) for tensor in arguments[:moving]), strict=True):
        y, carried = step(carried, *tokens, *arguments[moving:])
        outputs.append(y)
    return torch.stack(outputs, 1)


def heads(length: int) -> Tensor:
    return torch.randn(1, length, HEADS, WIDTH)


def log_decays(*shape: int) -> Tensor:
    return F.logsigmoid(torch.randn(shape) + 3)


def unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def positive(x: Tensor) -> Tensor:
    return x.abs() / WIDTH


def projections(length: int) -> list[Tensor]:
    return [heads(length), heads(length), heads(length)]


def rwkv7_inputs(length: int) -> list[Tensor]:
    a = unit(heads(length))
    return [heads(length), -0.6 * torch.rand_like(a), heads(length), heads(length), a, -a * torch.rand_like(a)]
