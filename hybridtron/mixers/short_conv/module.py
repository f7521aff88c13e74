"""The gated short convolution on a backend."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.documents import Documents
from hybridtron.mixers.mixer import Mixer
from hybridtron.ops.conv.dynamic_conv import dynamic_conv, dynamic_conv_prefill, dynamic_conv_step
from hybridtron.ops.conv.short_conv import gated_short_conv, short_conv_prefill, short_conv_step


class ShortConv(Mixer):
    """Gated short convolution; parts of the core's input are B, C, x and the taps that tokens generate."""

    def project_in(self, x: Tensor, documents: Documents | None = None) -> Tensor:
        packed = self.in_proj(x)
        if not self.config.dynamic:
            return packed
        return torch.cat([packed, self.tap_up(F.silu(F.linear(x, self.tap_down)))], -1)

    def core(self, packed: Tensor) -> Tensor:
        before, after, x, *taps = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        weight, bias = self.local_heads("conv_weight"), self._bias()
        if not taps:
            return gated_short_conv(before, x, after, weight, bias).transpose(0, 1)
        return self._gated(after, dynamic_conv(before * x, self._taps(taps))).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        """Return the inputs of the convolution before the first token, zeros [b, k - 1, h]."""
        return self.zero_conv_inputs(batch)

    def prefill_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after, x, *taps = (part.transpose(0, 1) for part in packed.split(self.core_sizes, -1))  # [b, s, .]
        if taps:
            y, state = dynamic_conv_prefill(state, before * x, self._taps(taps))
            return self._gated(after, y).transpose(0, 1), state
        y, state = short_conv_prefill(state, before * x, self.conv_weight, self._bias())
        return (after * y).transpose(0, 1), state

    def step_core(self, packed: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after, x, *taps = packed.split(self.core_sizes, -1)
        if taps:
            y, state = dynamic_conv_step(state, before * x, self._taps(taps))
            return self._gated(after, y), state
        y, state = short_conv_step(state, before * x, self.conv_weight, self._bias())
        return after * y, state

    def _bias(self) -> Tensor | None:
        return self.local_heads("conv_bias") if self.config.bias else None

    def _taps(self, generated: list[Tensor]) -> Tensor:
        """Return the taps of tokens [..., k, c]: those that all share, and what each token generates, k of [..., c]."""
        return torch.stack(generated, -2) + self.local_heads("conv_weight").t()

    def _gated(self, after: Tensor, y: Tensor) -> Tensor:
        """Add the bias to a dynamic convolution's outputs [..., c], and gate them."""
        bias = self._bias()
        return after * (y if bias is None else y + bias)
