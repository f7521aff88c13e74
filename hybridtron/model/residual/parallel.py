"""Groups of layers that read the same normed input and are added together (GPT-J; PaLM, arXiv 2204.02311)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.stream import States


class Layer(plain.Layer):
    """One layer of a group. Within a group the states are the sum so far and the normed input."""

    def __init__(self, config: ModelConfig, layer: int, backend: Backend) -> None:
        super().__init__(config, layer, backend)
        size = config.residual.state_widths
        self.is_last = len(size(config, layer + 1)) == 1

    def read(self, states: States, norm: plain.Norm) -> tuple[Tensor, Tensor]:
        x = states[1] if len(states) > 1 else norm(states[0])
        return x, x

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        total = states[0] + self.scaled(y)
        return (total,) if self.is_last else (total, mixing)


class End(plain.End):
    """As of a plain stream."""
