"""The two-layer feed-forward network on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.elementwise.activations import ACTIVATIONS


class MLP(Mixer):
    """down(activation(up(x)))."""

    in_name, out_name = "up", "down"

    def core(self, packed: Tensor) -> Tensor:
        return ACTIVATIONS[self.config.activation](packed)  # [s, b, f] -> [s, b, f]
