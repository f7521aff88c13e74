"""Gated short convolution, as in LFM2 (Liquid AI 2025): the cheapest mixer that looks at more than one token."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from hybridtron.mixers.contract import MixerConfig
from hybridtron.tensors import Init, PackedPart, TensorSpec


class ShortConvConfig(MixerConfig):
    """Gated short convolution: out(C * conv(B * x)), with B, C and x projections of the input."""

    type: Literal["short_conv"]
    conv_kernel: int = Field(3, ge=1, description="Tokens that an output sees, itself included.")
    bias: bool = Field(False, description="Biases on the projections and the convolution.")

    shares_state = False
    mad_layers: ClassVar = {"short-conv": {}}

    def tensors(self) -> dict[str, TensorSpec]:
        width, bound = self.hidden_size, self.conv_kernel**-0.5
        packed = tuple(PackedPart(name, width, key="hidden_size") for name in ("B", "C", "x"))
        channels = (packed[2],)
        specs = {
            "in_proj.weight": TensorSpec((3 * width, width), Init("input"), packed),
            "conv_weight": TensorSpec((width, self.conv_kernel), Init("uniform", -bound, bound), channels),
            "out_proj.weight": TensorSpec((width, width), Init("output"), channels, axis=1),
        }
        if self.bias:
            specs["in_proj.bias"] = TensorSpec((3 * width,), Init("zeros"), packed, decay=False)
            specs["conv_bias"] = TensorSpec((width,), Init("zeros"), channels, decay=False)
            specs["out_proj.bias"] = TensorSpec((width,), Init("zeros"), decay=False)
        return specs

    def state_size(self, seq_len: int) -> int:
        """Count the inputs that the convolution still reaches, which are all of the state."""
        return (self.conv_kernel - 1) * self.hidden_size
