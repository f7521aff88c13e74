"""SwiGLU on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.backends.base import Backend
from hybridtron.mixers.decoding import Stateless
from hybridtron.mixers.swiglu.config import SwiGLUConfig
from hybridtron.ops.elementwise.swiglu import swiglu


class SwiGLU(Stateless):
    """[s, b, h] -> [s, b, h]."""

    def __init__(self, config: SwiGLUConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.gate_up = backend.column_linear(specs["gate_up.weight"])
        self.down = backend.row_linear(specs["down.weight"])

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.core(self.gate_up(x)))

    def core(self, packed: Tensor) -> Tensor:
        return swiglu(packed)  # [s, b, 2f] -> [s, b, f]
