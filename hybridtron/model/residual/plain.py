"""The plain residual stream, x + m layer(norm(x)), and the interface of every other topology."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.backends.norm import RMSNorm
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual.stream import States

Norm = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    """One layer's place in the topology: x + m y, for x the only state and m the model's `residual_multiplier`.

    All functions work on all tokens ([s, b, ...]) and on one token of every sequence ([b, ...]).
    """

    def __init__(self, config: ModelConfig, layer: int, backend: Backend) -> None:
        super().__init__()
        self.multiplier = config.residual_multiplier

    def read(self, states: States, norm: Norm) -> tuple[Tensor, Any]:
        """Return the normed input of the mixer [..., h], and what `write` needs besides."""
        return norm(states[0]), None

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        """Return the states after the layer, from those before it and the mixer's output y [..., h]."""
        return (states[0] + self.scaled(y),)

    def added(self, before: States, after: States) -> Tensor:
        """Return what the layer added to the first state, from the states before and after it."""
        return after[0] - before[0]

    def scaled(self, y: Tensor) -> Tensor:
        """Return y times the multiplier."""
        return y if self.multiplier == 1 else y * self.multiplier


class End(nn.Module):
    """What stands before the first layer and after the last one.

    Only the stage with the last layer has the parameters (`last`).
    """

    def __init__(self, config: ModelConfig, backend: Backend, last: bool) -> None:
        super().__init__()

    def begin(self, x: Tensor) -> States:
        """Return the states before the first layer, from the embedded tokens [..., h]."""
        return (x,)

    def forward(self, states: States) -> Tensor:
        """Return the input of the final norm [..., h], from the states after the last layer."""
        return states[0]


def apply_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Norm all tokens [s, b, h], or one token of every sequence [b, h]."""
    if x.dim() == 3:
        return norm(x)
    return norm.step(x) if isinstance(norm, RMSNorm) else norm(x.unsqueeze(0)).squeeze(0)
