"""Mamba: a selective state space with a decay per channel and state element (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import MixerConfig, check_whole
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.step_size import StepSizeBias
from hybridtron.tensors import Init, PackedPart, TensorSpec

if TYPE_CHECKING:
    import torch


def log_count(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return the logarithms of 1, 2, ... along the last axis: decay rates of the state elements."""
    import torch

    return torch.arange(1.0, shape[-1] + 1).log_().expand(shape)


class Mamba1Config(MixerConfig):
    """Mamba (S6): short convolution, projections from it to step, input and output of the state space, gate."""

    type: Literal["mamba1"]
    expand: float = Field(2.0, gt=0, description="Inner width as a multiple of hidden_size.")
    state_dim: Annotated[int, Facts(sets_state="free")] = Field(16, ge=1, description="State elements per channel (N).")
    dt_rank: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Rank of the projection to the steps; by default hidden_size / 16, rounded up."
    )
    conv_kernel: int = Field(4, ge=1, description="Length of the short convolution.")

    multiplied = ("dt_weight",)  # the scan, elementwise, would add 9 inner_size * state_dim FLOPs a token
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"mamba": {"state_dim": 4}}

    @model_validator(mode="after")
    def _inner_width_is_whole(self) -> Mamba1Config:
        check_whole("expand", self.expand, self.hidden_size)
        return self

    @property
    def inner_size(self) -> int:
        return round(self.expand * self.hidden_size)

    @property
    def step_rank(self) -> int:
        return self.dt_rank or -(-self.hidden_size // 16)

    def tensors(self) -> dict[str, TensorSpec]:
        x, z = (PackedPart(name, self.inner_size, key="expand") for name in "xz")
        inner, size = (x,), self.inner_size
        conv_bound, dt_bound = self.conv_kernel**-0.5, self.step_rank**-0.5
        return {
            "in_proj.weight": TensorSpec((2 * size, self.hidden_size), Init("input"), (x, z)),
            "conv_weight": TensorSpec((size, self.conv_kernel), Init("uniform", -conv_bound, conv_bound), inner),
            "conv_bias": TensorSpec((size,), Init("uniform", -conv_bound, conv_bound), inner, decay=False),
            "x_proj.weight": TensorSpec((self.step_rank + 2 * self.state_dim, size), Init("input"), inner, axis=1),
            "dt_weight": TensorSpec((size, self.step_rank), Init("uniform", -dt_bound, dt_bound), inner),
            "dt_bias": TensorSpec((size,), StepSizeBias(), inner, decay=False),
            "A_log": TensorSpec((size, self.state_dim), log_count, inner, decay=False),
            "D": TensorSpec((size,), Init("ones"), inner, decay=False),
            "out_proj.weight": TensorSpec((self.hidden_size, size), Init("output"), inner, axis=1),
        }

    def state_size(self, seq_len: int) -> int:
        return self.inner_size * self.state_dim
