"""The gated short convolution on a backend."""

from __future__ import annotations

from torch import Tensor

from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.conv.short_conv import gated_short_conv, short_conv_prefill, short_conv_step


class ShortConv(Mixer):
    """Gated short convolution; parts of the projection are B, C and x."""

    def core(self, packed: Tensor) -> Tensor:
        before, after, x = (part.transpose(0, 1) for part in packed.chunk(3, -1))  # [b, s, channels]
        bias = self.local_heads("conv_bias") if self.config.bias else None
        return gated_short_conv(before, x, after, self.local_heads("conv_weight"), bias).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        """Return the inputs of the convolution before the first token, zeros [b, k - 1, h]."""
        return self.zero_conv_inputs(batch)

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after, x = (part.transpose(0, 1) for part in packed.chunk(3, -1))  # [b, s, channels]
        bias = self.conv_bias if self.config.bias else None
        y, state = short_conv_prefill(state, before * x, self.conv_weight, bias)
        return (after * y).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after, x = packed.chunk(3, -1)
        bias = self.conv_bias if self.config.bias else None
        y, state = short_conv_step(state, before * x, self.conv_weight, bias)
        return after * y, state
