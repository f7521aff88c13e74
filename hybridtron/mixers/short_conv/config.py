"""Gated short convolution, as in LFM2 (Liquid AI 2025): the cheapest mixer that looks at more than one token."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import Init, PackedPart, TensorSpec


class ShortConvConfig(MixerConfig):
    """Gated short convolution: out(C * conv(B * x)), with B, C and x projections of the input.

    With `dynamic` each token adds taps of its own to the convolution's, as in Jet-Nemotron (arXiv 2508.15884).
    """

    type: Literal["short_conv"]
    conv_kernel: int = Field(3, ge=1, description="Tokens that an output sees, itself included.")
    bias: bool = Field(False, description="Biases on the projections and the convolution.")

    dynamic: bool = Field(False, description="Add taps that each token generates: up(silu(down(input))).")
    tap_rank: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Rank of the projection to generated taps; by default hidden_size / 8, rounded up."
    )

    first_keys = "conv_kernel bias"
    multiplied = ("tap_down",)
    shares_state = False
    mad_layers: ClassVar = {"short-conv": {}}

    @model_validator(mode="after")
    def _rank_is_used(self) -> ShortConvConfig:
        if self.tap_rank is not None and not self.dynamic:
            raise problem("tap_rank", self.tap_rank, "nothing without dynamic")
        return self

    @property
    def core_parts(self) -> tuple[PackedPart, ...]:
        """Declare the parts of the core's input: gates, inputs, and the generated taps from the oldest on."""
        taps = tuple(f"tap{index}" for index in range(self.conv_kernel)) if self.dynamic else ()
        return tuple(PackedPart(name, self.hidden_size, key="hidden_size") for name in ("B", "C", "x", *taps))

    def tensors(self) -> dict[str, TensorSpec]:
        width, bound = self.hidden_size, self.conv_kernel**-0.5
        packed, taps = self.core_parts[:3], self.core_parts[3:]
        channels = (packed[2],)
        specs = {
            "in_proj.weight": TensorSpec((3 * width, width), Init("input"), packed),
            "conv_weight": TensorSpec((width, self.conv_kernel), Init("uniform", -bound, bound), channels),
            "out_proj.weight": TensorSpec((width, width), Init("output"), channels, axis=1),
        }
        if self.dynamic:
            rank = self.tap_rank or -(-width // 8)
            specs["tap_down"] = TensorSpec((rank, width), Init("input"))
            specs["tap_up.weight"] = TensorSpec((len(taps) * width, rank), Init("zeros"), taps)
        if self.bias:
            specs["in_proj.bias"] = TensorSpec((3 * width,), Init("zeros"), packed, decay=False)
            specs["conv_bias"] = TensorSpec((width,), Init("zeros"), channels, decay=False)
            specs["out_proj.bias"] = TensorSpec((width,), Init("zeros"), decay=False)
        return specs

    def state_size(self, seq_len: int) -> int:
        """Count the inputs that the convolution still reaches, which are all of the state."""
        return (self.conv_kernel - 1) * self.hidden_size
