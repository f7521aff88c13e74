"""The plain residual stream, x + m layer(norm(x)), and the interface of every other topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hybridtron.backends.base import RMSNorm
from hybridtron.model.residual.stream import States

Norm = Callable[[Tensor], Tensor]


class Residual(nn.Module):
    """One layer's place in the residual topology: x + m y, for x the only state and m the `multiplier`.

    All functions work on all tokens ([s, b, ...]) and on one token ([b, ...]).
    """

    def __init__(self, multiplier: float = 1.0) -> None:
        super().__init__()
        self.multiplier = multiplier

    def read(self, states: States, norm: Norm) -> tuple[Tensor, Any]:
        """Return the normed input of the layer's mixer [..., h], and what `write` needs besides."""
        return norm(states[0]), None

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        """Return the states after the layer, from those before it and its mixer's output y [..., h]."""
        return (states[0] + self.scaled(y),)

    def scaled(self, y: Tensor) -> Tensor:
        """Return y times the multiplier."""
        return y if self.multiplier == 1 else y * self.multiplier


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm all tokens [s, b, h], or one token of every sequence [b, h]."""
    if x.dim() == 3:
        return norm(x)
    return norm.step(x) if isinstance(norm, RMSNorm) else norm(x.unsqueeze(0)).squeeze(0)
