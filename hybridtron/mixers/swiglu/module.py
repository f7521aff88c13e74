"""SwiGLU on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.elementwise.activations import swiglu


class SwiGLU(Mixer):
    """down(silu(gate(x)) * up(x))."""

    in_name, out_name = "gate_up", "down"

    def core(self, packed: Tensor) -> Tensor:
        return swiglu(packed)  # [s, b, 2f] -> [s, b, f]
