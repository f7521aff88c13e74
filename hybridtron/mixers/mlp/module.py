"""The two-layer feed-forward network on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.decoding import Stateless
from hybridtron.mixers.mlp.config import MLPConfig
from hybridtron.ops.elementwise.activations import ACTIVATIONS


class MLP(Stateless):
    """[s, b, h] -> [s, b, h]."""

    def __init__(self, config: MLPConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.up = backend.column_linear(specs["up.weight"], specs.get("up.bias"))
        self.down = backend.row_linear(specs["down.weight"], specs.get("down.bias"))
        self.core = ACTIVATIONS[config.activation]  # [s, b, f] -> [s, b, f]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.core(self.up(x)))
