"""Mamba: a selective state space with a decay per channel and state element (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
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
    conv_bias: bool = Field(True, description="Bias of the short convolution.")
    proj_bias: bool = Field(False, description="Bias on the input and output projections.")
    inner_norm: Literal["none", "plain", "learned"] = Field(
        "none",
        description="RMS norm of each of dt, before its projection, B and C: without weights (plain, Falcon-Mamba) or "
        "with (learned, Jamba).",
    )
    inner_norm_eps: float | None = Field(
        None, gt=0, description="Added to the mean square in the inner norms; by default norm_eps of the model."
    )

    first_keys = "expand state_dim dt_rank conv_kernel conv_bias proj_bias inner_norm inner_norm_eps"
    multiplied = ("dt_weight",)  # the scan, elementwise, would add 9 inner_size * state_dim FLOPs a token
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"mamba": {"state_dim": 4}}

    @model_validator(mode="after")
    def _keys_agree(self) -> Mamba1Config:
        check_whole("expand", self.expand, self.hidden_size)
        if self.inner_norm_eps is not None and self.inner_norm == "none":
            raise problem("inner_norm_eps", self.inner_norm_eps, "nothing with inner_norm none")
        return self

    @property
    def inner_size(self) -> int:
        return round(self.expand * self.hidden_size)

    @property
    def step_rank(self) -> int:
        return self.dt_rank or -(-self.hidden_size // 16)

    @property
    def shared_sizes(self) -> dict[str, int]:
        """Return the width of each part of what `x_proj` gives, which all channels share."""
        return {"dt": self.step_rank, "B": self.state_dim, "C": self.state_dim}

    def tensors(self) -> dict[str, TensorSpec]:
        x, z = (PackedPart(name, self.inner_size, key="expand") for name in "xz")
        inner, size = (x,), self.inner_size
        conv_bound, dt_bound = self.conv_kernel**-0.5, self.step_rank**-0.5
        specs = {
            "in_proj.weight": TensorSpec((2 * size, self.hidden_size), Init("input"), (x, z)),
            "conv_weight": TensorSpec((size, self.conv_kernel), Init("uniform", -conv_bound, conv_bound), inner),
            "conv_bias": TensorSpec((size,), Init("uniform", -conv_bound, conv_bound), inner, decay=False),
            "x_proj.weight": TensorSpec((self.step_rank + 2 * self.state_dim, size), Init("input"), inner, axis=1),
            "dt_weight": TensorSpec((size, self.step_rank), Init("uniform", -dt_bound, dt_bound), inner),
            "dt_bias": TensorSpec((size,), StepSizeBias(), inner, decay=False, float32=True),
            "A_log": TensorSpec((size, self.state_dim), log_count, inner, decay=False, float32=True),
            "D": TensorSpec((size,), Init("ones"), inner, decay=False, float32=True),
            "out_proj.weight": TensorSpec((self.hidden_size, size), Init("output"), inner, axis=1),
        }
        if not self.conv_bias:
            del specs["conv_bias"]
        if self.proj_bias:
            specs["in_proj.bias"] = TensorSpec((2 * size,), Init("zeros"), (x, z), decay=False)
            specs["out_proj.bias"] = TensorSpec((self.hidden_size,), Init("zeros"), decay=False)
        if self.inner_norm == "learned":
            for name, width in self.shared_sizes.items():
                specs[f"{name}_norm_weight"] = TensorSpec((width,), Init("ones"), decay=False)
        return specs

    def state_size(self, seq_len: int) -> int:
        return self.inner_size * self.state_dim
