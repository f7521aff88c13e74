"""Mamba-3: a selective state space by the trapezoidal rule, with states that rotate (arXiv 2603.15569)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.state_space_heads import StateSpaceHeadsConfig
from hybridtron.mixers.step_size import StepSizeBias
from hybridtron.ops.flops import mamba3_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class Mamba3Config(StateSpaceHeadsConfig):
    """Mamba-3: trapezoidal rule, data-dependent rotation, biases on B and C, no short convolution."""

    type: Literal["mamba3"]
    mimo_rank: int = Field(1, ge=1, description="Inputs and outputs of a head's state (MIMO); 1 is the SISO form.")
    rotary_fraction: float = Field(
        0.5, gt=0, le=1, description="Share of the state's elements that rotate, by angles that depend on the token."
    )
    decay_activation: Literal["softplus", "heavy_tail"] = Field(
        "softplus",
        description="Map to positive decay rates: softplus, as in the paper, or 1 + a for a >= 0, 1 / (1 - a) below.",
    )
    output_norm: bool = Field(False, description="RMS norm of each head's output, in front of the gate.")
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens times mimo_rank per chunk of the scan; changes speed, not results."
    )

    float32_state: ClassVar = True
    mad_layers: ClassVar = {"mamba3": {"head_dim": 16, "state_dim": 8}}

    @model_validator(mode="after")
    def _something_rotates(self) -> Mamba3Config:
        if self.num_angles < 1:
            expected = f"one of which rotary_fraction {self.rotary_fraction:g} has at least two elements"
            raise problem("state_dim", self.state_dim, expected)
        return self

    @property
    def num_angles(self) -> int:
        """Return how many pairs of state elements rotate."""
        return int(self.state_dim * self.rotary_fraction) // 2

    def tensors(self) -> dict[str, TensorSpec]:
        z, x = (PackedPart(name, self.num_heads, self.head_dim, "head_dim") for name in "zx")
        b, c = (PackedPart(name, self.groups, self.mimo_rank * self.state_dim, "num_groups") for name in "BC")
        dt, a, trap = (PackedPart(name, self.num_heads, 1, "head_dim") for name in ("dt", "A", "trap"))
        angles = PackedPart("angles", self.groups, self.num_angles, "num_groups")
        packed = (z, x, b, c, dt, a, trap, angles)
        heads = (dt,)
        biases = TensorSpec(
            (dt.size, self.mimo_rank, self.state_dim), Init("ones"), heads, decay=False, float32=True
        )  # fmt: skip
        norm = TensorSpec((self.state_dim,), Init("ones"), decay=False)
        specs = {
            "in_proj.weight": TensorSpec((sum(part.size for part in packed), self.hidden_size), Init("input"), packed),
            "dt_bias": TensorSpec((dt.size,), StepSizeBias(), heads, decay=False, float32=True),
            "B_norm_weight": norm,
            "C_norm_weight": norm,
            "B_bias": biases,
            "C_bias": biases,
            "D": TensorSpec((dt.size,), Init("ones"), heads, decay=False, float32=True),
            "out_proj.weight": TensorSpec((self.hidden_size, x.size), Init("output"), (x,), axis=1),
        }
        if self.output_norm:
            specs["norm_weight"] = TensorSpec((x.size,), Init("ones"), (x,), decay=False)
        if self.mimo_rank > 1:
            share = 1 / self.mimo_rank
            for name, value in (("mimo_x", share), ("mimo_z", 1.0), ("mimo_out", share)):
                shape = (dt.size, self.mimo_rank, self.head_dim)
                specs[name] = TensorSpec(shape, Init("uniform", value, value), heads)
        return specs

    def core_flops(self, seq_len: int) -> int:
        return mamba3_flops(
            seq_len, self.num_heads, self.head_dim, self.state_dim, self.mimo_rank, self.chunk_size
        )  # fmt: skip

    def state_size(self, seq_len: int) -> int:
        """Count a head's state, the last token's B and x, and the angles."""
        last = self.mimo_rank * self.state_dim + self.head_dim
        return self.num_heads * (self.head_dim * self.state_dim + last + self.num_angles)
