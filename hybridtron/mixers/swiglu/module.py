"""SwiGLU on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.ops.elementwise.activations import swiglu, swiglu_reference
from hybridtron.ops.native.library import Kernels


class SwiGLU(Mixer):
    """down(silu(gate(x)) * up(x))."""

    in_name, out_name = "gate_up", "down"

    def core(self, packed: Tensor) -> Tensor:
        return swiglu(packed)  # [s, b, 2f] -> [s, b, f]

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        y = swiglu_reference(self.project_in(x.unsqueeze(0)))  # the fused form is for many tokens
        return self.project_out(y).squeeze(0), state

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: State) -> PreparedStep:
        return PreparedStep([kernels.swiglu_forward.prepare(*y.shape, packed, packed.stride(0), y)])
