"""Gated linear attention: a matrix of memory per head whose rows fade at rates that depend on the token."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import MixerConfig, check_divides, check_power_of_two, check_whole
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import gla_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class GLAConfig(MixerConfig):
    """Gated linear attention (Yang et al. 2023, arXiv 2312.06635): low-rank decay gate, head-wise norm, output gate."""

    type: Literal["gla"]
    num_heads: Annotated[int, Facts(sets_state="divisor", at_small_width="heads")] = Field(ge=1, description="Heads.")
    expand_k: float = Field(0.5, gt=0, description="Query and key channels of all heads as a multiple of hidden_size.")
    expand_v: float = Field(1.0, gt=0, description="Value channels of all heads as a multiple of hidden_size.")
    gate_rank: int = Field(16, ge=1, description="Rank of the projection to the decay gate.")
    gate_divisor: float = Field(
        16.0, gt=0, description="The decay is the sigmoid to the power of one over this; larger forgets more slowly."
    )
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk, a power of two; changes speed, not results."
    )

    first_keys = "num_heads expand_k expand_v gate_rank gate_divisor chunk_size"
    multiplied = ("gate_down",)
    float32_state: ClassVar = True
    mad_layers: ClassVar = {
        "gated-linear-attention": {"num_heads": 1, "expand_k": 1.0},
        "mh-gated-linear-attention": {"num_heads": 8, "expand_k": 1.0},
    }

    @model_validator(mode="after")
    def _heads_divide(self) -> GLAConfig:
        for key in ("expand_k", "expand_v"):
            share = getattr(self, key)
            check_whole(key, share, self.hidden_size)
            check_divides("num_heads", self.num_heads, round(share * self.hidden_size), f"{key} x hidden_size =")
        check_power_of_two("chunk_size", self.chunk_size)
        return self

    @property
    def key_size(self) -> int:
        return round(self.expand_k * self.hidden_size) // self.num_heads

    @property
    def value_size(self) -> int:
        return round(self.expand_v * self.hidden_size) // self.num_heads

    @property
    def core_parts(self) -> tuple[PackedPart, ...]:
        """Declare the parts of the core's input: queries, keys, values, output gate, decay gate."""
        sizes = {"q": self.key_size, "k": self.key_size, "v": self.value_size, "z": self.value_size, "g": self.key_size}
        return tuple(PackedPart(name, self.num_heads, size, "num_heads") for name, size in sizes.items())

    def tensors(self) -> dict[str, TensorSpec]:
        *packed, decay = self.core_parts
        values = self.core_parts[2]
        rows = sum(part.size for part in packed)
        return {
            "in_proj.weight": TensorSpec((rows, self.hidden_size), Init("input"), tuple(packed)),
            "gate_down": TensorSpec((self.gate_rank, self.hidden_size), Init("input")),
            "gate_up.weight": TensorSpec((decay.size, self.gate_rank), Init("input"), (decay,)),
            "gate_up.bias": TensorSpec((decay.size,), Init("zeros"), (decay,), decay=False),
            "norm_weight": TensorSpec((self.value_size,), Init("ones"), decay=False),
            "out_proj.weight": TensorSpec((self.hidden_size, values.size), Init("output"), (values,), axis=1),
        }

    def core_flops(self, seq_len: int) -> int:
        """Count all but queries times keys of neighbouring tokens, an elementwise step of `ops.gla`."""
        return gla_flops(seq_len, self.num_heads, self.key_size, self.value_size, self.chunk_size)

    def state_size(self, seq_len: int) -> int:
        return self.num_heads * self.key_size * self.value_size
