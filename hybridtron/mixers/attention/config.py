"""Causal self-attention with grouped keys and values, rotary positions, and optionally a sliding window and sinks."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides, check_whole
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import Init, PackedPart, TensorSpec

_BIASES = {"qkv_bias": True, "proj_bias": True}
_MAD_WINDOW = 33  # a token and the 32 before it


class AttentionConfig(MixerConfig):
    """Causal softmax attention (MHA or GQA), rotary positions, optional sliding window and sinks."""

    type: Literal["attention"]
    num_heads: Annotated[int, Facts(at_small_width="heads")] = Field(ge=1, description="Query heads.")
    num_kv_heads: Annotated[int | None, Facts(at_small_width="grouped_heads")] = Field(
        None, ge=1, description="Key and value heads; by default as many as query heads."
    )
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Channels per head; by default hidden_size / num_heads."
    )
    window: int | None = Field(None, ge=1, description="Keys that a query sees, itself included; all by default.")
    rotary_base: float = Field(10000.0, gt=0, description="Base of the rotary frequencies (theta).")
    rotary_fraction: float = Field(1.0, ge=0, le=1, description="Share of a head's channels that rotate; 0: none.")
    sinks: bool = Field(
        False, description="A learned score per head that joins every softmax and has no value (attention sink)."
    )
    qkv_bias: bool = Field(False, description="Bias on the query, key and value projections.")
    proj_bias: bool = Field(False, description="Bias on the output projection.")

    attends = True
    shares_state = False
    mad_layers: ClassVar = {
        "attention": {**_BIASES, "num_heads": 1},
        "mh-attention": {**_BIASES, "num_heads": 16},
        "sliding-attention": {**_BIASES, "num_heads": 1, "window": _MAD_WINDOW},
        "mh-sliding-attention": {**_BIASES, "num_heads": 16, "window": _MAD_WINDOW},
    }

    @model_validator(mode="after")
    def _heads_divide(self) -> AttentionConfig:
        if self.head_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        check_divides("num_kv_heads", self.kv_heads, self.num_heads, "num_heads")
        check_whole("rotary_fraction", self.rotary_fraction, self.head_size, least=0)
        if self.rotary_dim % 2:
            nearest = (self.rotary_dim - 1) / self.head_size
            expected = f"an even number of the {self.head_size} channels of a head (nearest: {nearest:.6g})"
            raise problem("rotary_fraction", self.rotary_fraction, expected)
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    @property
    def head_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def rotary_dim(self) -> int:
        return round(self.head_size * self.rotary_fraction)

    def tensors(self) -> dict[str, TensorSpec]:
        queries = PackedPart("q", self.num_heads, self.head_size, "num_heads")
        keys = PackedPart("k", self.kv_heads, self.head_size, "num_kv_heads")
        values = PackedPart("v", self.kv_heads, self.head_size, "num_kv_heads")
        packed = (queries, keys, values)
        rows = sum(part.size for part in packed)
        specs = {"qkv.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed)}
        if self.qkv_bias:
            specs["qkv.bias"] = TensorSpec((rows,), Init("zeros"), packed, decay=False)
        if self.sinks:
            heads = PackedPart("sinks", self.num_heads, key="num_heads")
            specs["sinks"] = TensorSpec((self.num_heads,), Init("zeros"), (heads,), decay=False)
        specs["proj.weight"] = TensorSpec((self.hidden_size, queries.size), Init("output"), (queries,), axis=1)
        if self.proj_bias:
            specs["proj.bias"] = TensorSpec((self.hidden_size,), Init("zeros"), decay=False)
        return specs

    def core_flops(self, seq_len: int) -> int:
        from hybridtron.ops.attention.softmax import attention_flops

        return attention_flops(seq_len, self.num_heads, self.head_size, self.window)

    def state_size(self, seq_len: int) -> int:
        return 2 * self.kv_heads * self.head_size * min(seq_len, self.window or seq_len)
