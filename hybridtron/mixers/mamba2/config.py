"""Mamba-2: a selective state space with one decay per head, computed in chunks (Dao & Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.state_space_heads import StateSpaceHeadsConfig
from hybridtron.mixers.step_size import StepSizeBias
from hybridtron.ops.flops import ssd_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class Mamba2Config(StateSpaceHeadsConfig):
    """Mamba-2 (SSD): short convolution, selective state space, gated norm."""

    type: Literal["mamba2"]
    conv_kernel: int = Field(4, ge=1, description="Length of the short convolution.")
    conv_bias: bool = Field(True, description="Bias of the short convolution.")
    proj_bias: bool = Field(False, description="Bias on the input and output projections.")
    dt_limit_min: float = Field(0.0, ge=0, description="Smallest step size; smaller ones are raised to it.")
    dt_limit_max: float | None = Field(
        None, gt=0, description="Largest step size; larger ones are lowered to it. No limit by default."
    )
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk of the scan; changes speed, not results."
    )

    first_keys = (
        "expand head_dim state_dim num_groups conv_kernel conv_bias proj_bias dt_limit_min dt_limit_max chunk_size"
    )
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"mamba2": {"head_dim": 16, "state_dim": 8}}

    @model_validator(mode="after")
    def _limits_agree(self) -> Mamba2Config:
        if self.dt_limit_max is not None and self.dt_limit_max < self.dt_limit_min:
            raise problem("dt_limit_max", self.dt_limit_max, f"at least dt_limit_min {self.dt_limit_min:g}")
        return self

    @property
    def dt_limit(self) -> tuple[float, float]:
        """Return the smallest and the largest step size."""
        return self.dt_limit_min, math.inf if self.dt_limit_max is None else self.dt_limit_max

    def tensors(self) -> dict[str, TensorSpec]:
        z = PackedPart("z", self.num_heads, self.head_dim, "head_dim")
        x = PackedPart("x", self.num_heads, self.head_dim, "head_dim")
        b = PackedPart("B", self.groups, self.state_dim, "num_groups")
        c = PackedPart("C", self.groups, self.state_dim, "num_groups")
        dt = PackedPart("dt", self.num_heads, 1, "head_dim")
        inner, conv, heads = (x,), (x, b, c), (dt,)
        packed = (z, *conv, dt)
        rows = sum(part.size for part in packed)
        channels = sum(part.size for part in conv)
        bound = self.conv_kernel**-0.5
        specs = {
            "in_proj.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed),
            "conv_weight": TensorSpec((channels, self.conv_kernel), Init("uniform", -bound, bound), conv),
            "conv_bias": TensorSpec((channels,), Init("uniform", -bound, bound), conv, decay=False),
            "dt_bias": TensorSpec((dt.size,), StepSizeBias(), heads, decay=False, float32=True),
            "A_log": TensorSpec((dt.size,), Init("log_uniform", 1.0, 16.0), heads, decay=False, float32=True),
            "D": TensorSpec((dt.size,), Init("ones"), heads, decay=False, float32=True),
            "norm_weight": TensorSpec((x.size,), Init("ones"), inner, decay=False),
            "out_proj.weight": TensorSpec((self.hidden_size, x.size), Init("output"), inner, axis=1),
        }
        if not self.conv_bias:
            del specs["conv_bias"]
        if self.proj_bias:
            specs["in_proj.bias"] = TensorSpec((rows,), Init("zeros"), packed, decay=False)
            specs["out_proj.bias"] = TensorSpec((self.hidden_size,), Init("zeros"), decay=False)
        return specs

    def core_flops(self, seq_len: int) -> int:
        return ssd_flops(seq_len, self.num_heads, self.head_dim, self.groups, self.state_dim, self.chunk_size)

    def state_size(self, seq_len: int) -> int:
        return self.num_heads * self.head_dim * self.state_dim
