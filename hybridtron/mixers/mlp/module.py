"""The two-layer feed-forward network on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.mixer import Mixer, State
from hybridtron.mixers.prepared_step import PreparedStep
from hybridtron.ops.elementwise.activations import ACTIVATIONS
from hybridtron.ops.native.library import Kernels


class MLP(Mixer):
    """down(activation(up(x)))."""

    in_name, out_name = "up", "down"

    def core(self, packed: Tensor) -> Tensor:
        return ACTIVATIONS[self.config.activation](packed)  # [s, b, f] -> [s, b, f]

    def prepare_step_core(self, kernels: Kernels, packed: Tensor, y: Tensor, state: State) -> PreparedStep:
        if self.config.activation == "relu2":
            return PreparedStep([kernels.squared_relu_forward.prepare(*y.shape, packed, packed.stride(0), y)])
        activation = ACTIVATIONS[self.config.activation]
        return PreparedStep([lambda: y.copy_(activation(packed))])
