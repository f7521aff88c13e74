"""The gated short convolution on a backend."""

from __future__ import annotations

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.short_conv.config import ShortConvConfig
from hybridtron.ops.conv.short_conv import short_conv, short_conv_step


class ShortConv(nn.Module):
    """[s, b, h] -> [s, b, h]; a tensor- or context-parallel rank computes its own channels."""

    def __init__(self, config: ShortConvConfig, backend: Backend) -> None:
        super().__init__()
        specs = config.tensors()
        self.backend, self.specs = backend, specs
        self.in_proj = backend.column_linear(specs["in_proj.weight"], specs.get("in_proj.bias"))
        self.conv_weight = backend.parameter(specs["conv_weight"])
        self.conv_bias = backend.parameter(specs["conv_bias"]) if config.bias else None
        self.out_proj = backend.row_linear(specs["out_proj.weight"], specs.get("out_proj.bias"))

    def forward(self, x: Tensor) -> Tensor:
        packed = self.in_proj(x)  # [s, b, B + C + x]
        return self.out_proj(self.backend.with_full_sequence(self.core, packed, self.specs["in_proj.weight"]))

    def core(self, packed: Tensor) -> Tensor:
        """The projections of some channels [s, b, B + C + x] -> [s, b, channels]."""
        before, after, x = (part.transpose(0, 1) for part in packed.chunk(3, -1))  # [b, s, channels]
        weight = self.backend.local_heads(self.conv_weight, self.specs["conv_weight"])
        bias = None if self.conv_bias is None else self.backend.local_heads(self.conv_bias, self.specs["conv_bias"])
        return (after * short_conv(before * x, weight, bias)).transpose(0, 1)

    def initial_state(self, batch: int) -> Tensor:
        """The inputs of the convolution before the next token [b, k - 1, h]."""
        channels, taps = self.conv_weight.shape
        return self.conv_weight.new_zeros(batch, taps - 1, channels)

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        before, after, u = self.in_proj(x.unsqueeze(0)).squeeze(0).chunk(3, -1)
        y, state = short_conv_step(state, before * u, self.conv_weight, self.conv_bias)
        return self.out_proj((after * y).unsqueeze(0)).squeeze(0), state
