"""Multi-head latent attention: keys and values of all heads from one narrow latent, which alone is cached."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.attention.rotary_scaling import RotaryScaling
from hybridtron.mixers.contract import MixerConfig, check_divides
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import attention_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec


class MLAConfig(MixerConfig):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): low-rank keys and values, and a key for
    positions that all heads share."""

    type: Literal["mla"]
    num_heads: Annotated[int, Facts(at_small_width="heads")] = Field(ge=1, description="Heads.")
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Query and key channels per head without positions; by default hidden_size / num_heads."
    )
    value_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Value channels per head; by default head_dim."
    )
    kv_rank: Annotated[int, Facts(at_small_width="proportional")] = Field(
        512, ge=1, description="Width of the latent that makes keys and values."
    )
    q_rank: Annotated[int | None, Facts(at_small_width="proportional")] = Field(
        None, ge=1, description="Width of a latent that makes queries; by default the input itself makes them."
    )
    rotary_dim: Annotated[int, Facts(at_small_width="head_channels")] = Field(
        64, ge=0, description="Further query channels per head that meet a key shared by all heads; even; 0: none."
    )
    rotary: bool = Field(True, description="Rotate those channels by position; false: no positions (Kimi Linear).")
    rotary_base: float = Field(10000.0, gt=0, description="Base of the rotary frequencies (theta).")
    rotary_scaling: RotaryScaling | None = Field(
        None, description="Stretch the rotary frequencies to longer sequences than at first; null: no."
    )
    softmax_scale: float | None = Field(
        None,
        gt=0,
        description="Multiplies the scores before the softmax; by default 1 / sqrt(head_dim + rotary_dim).",
    )

    first_keys = "num_heads head_dim value_dim kv_rank q_rank rotary_dim rotary rotary_base"
    attends = True
    shares_state = False
    multiplied = ("kv_down", "q_down")
    mad_layers: ClassVar = {"mla": {"num_heads": 16, "kv_rank": 32, "rotary_dim": 8}}

    @field_validator("rotary_dim")
    @classmethod
    def _even(cls, value: int) -> int:
        if value % 2:
            raise problem("", value, f"an even number (nearest: {value - 1}, {value + 1})")
        return value

    @model_validator(mode="after")
    def _keys_agree(self) -> MLAConfig:
        if self.head_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        if self.rotary_scaling and not (self.rotary and self.rotary_dim):
            raise problem("rotary_scaling", self.rotary_scaling.type, "null without channels that rotate")
        return self

    @property
    def key_size(self) -> int:
        """Return the key channels per head that the latent makes."""
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def value_size(self) -> int:
        return self.value_dim or self.key_size

    @property
    def query_size(self) -> int:
        return self.rotary_dim + self.key_size

    def heads(self, name: str, size: int) -> PackedPart:
        return PackedPart(name, self.num_heads, size, "num_heads")

    def tensors(self) -> dict[str, TensorSpec]:
        width, rank = self.hidden_size, self.kv_rank
        q, k, v = (self.heads("q", self.query_size), self.heads("k", self.key_size), self.heads("v", self.value_size))
        specs = {
            "kv_down": TensorSpec((rank + self.rotary_dim, width), Init("input")),
            "kv_norm": TensorSpec((rank,), Init("ones"), decay=False),
            "kv_up.weight": TensorSpec((k.size + v.size, rank), Init("input"), (k, v)),
            "q.weight": TensorSpec((q.size, self.q_rank or width), Init("input"), (q,)),
            "out_proj.weight": TensorSpec((width, v.size), Init("output"), (v,), axis=1),
        }
        if self.q_rank:
            specs["q_down"] = TensorSpec((self.q_rank, width), Init("input"))
            specs["q_norm"] = TensorSpec((self.q_rank,), Init("ones"), decay=False)
        return specs

    def core_flops(self, seq_len: int) -> int:
        return attention_flops(seq_len, self.num_heads, 1) * (self.query_size + self.value_size) // 2

    def state_size(self, seq_len: int) -> int:
        return (self.kv_rank + self.rotary_dim) * seq_len
