"""A norm before each layer and one after it (Gemma 2, arXiv 2408.00118)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain
from hybridtron.model.residual.stream import States


class Layer(plain.Layer):
    """x + m norm(y)."""

    def __init__(self, config: ModelConfig, layer: int, backend: Backend) -> None:
        super().__init__(config, layer, backend)
        self.norm = backend.norm(config.norm_spec, zero_centered=config.zero_centered_norms)

    def write(self, states: States, y: Tensor, mixing: Any) -> States:
        return super().write(states, plain.apply_norm(self.norm, y), mixing)


class End(plain.End):
    """As of a plain stream."""
