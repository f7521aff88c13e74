"""Causal self-attention with grouped keys and values and rotary positions, and its options."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.attention.length_scaling import LengthScaling
from hybridtron.mixers.attention.rotary_scaling import RotaryScaling
from hybridtron.mixers.contract import MixerConfig, check_divides, check_whole
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import attention_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

_BIASES = {"qkv_bias": True, "proj_bias": True}
_MAD_WINDOW = 33  # a token and the 32 before it


class AttentionConfig(MixerConfig):
    """Causal softmax attention (MHA or GQA), rotary positions; options: sliding window, sinks, norms, gates, softcap.

    A score is softcap(scale q k) + the sum of log forget gates from the token after the key to the query.
    """

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
    softmax_scale: float | None = Field(
        None, gt=0, description="Multiplies the scores before the softmax; by default 1 / sqrt(head_dim)."
    )
    rotary_scaling: RotaryScaling | None = Field(
        None, description="Stretch the rotary frequencies to longer sequences than at first; null: no."
    )
    sinks: bool = Field(
        False, description="A learned score per head that joins every softmax and has no value (attention sink)."
    )
    qk_norm: Literal["none", "head", "full"] = Field(
        "none",
        description="RMS norm of queries and keys before they rotate: over each head (Qwen3) or all heads (OLMo 2).",
    )
    qk_norm_zero_centered: bool = Field(
        False, description="The norms of queries and keys multiply by 1 + weight, with weights that begin at zero."
    )
    gate: Literal["none", "element", "head"] = Field(
        "none",
        description="Multiply the heads' outputs by the sigmoid of a projection of the input: a value per channel or "
        "per head (arXiv 2505.06708).",
    )
    output_norm: bool = Field(False, description="RMS norm of each head's outputs, before they are gated.")
    softcap: float | None = Field(
        None, gt=0, description="Scores x become softcap * tanh(x / softcap) before the softmax (Gemma 2); null: no."
    )
    forget_gate: bool = Field(
        False,
        description="A gate per head and token, the sigmoid of a projection with a bias; the logarithms of those "
        "between key and query are added to the score (FoX, arXiv 2503.02130).",
    )
    length_scaling: LengthScaling | None = Field(
        None, description="Multiply queries by a logarithm of their position; null: no."
    )
    qkv_bias: bool = Field(False, description="Bias on the query, key, value and gate projections.")
    proj_bias: bool = Field(False, description="Bias on the output projection.")

    first_keys = (
        "num_heads num_kv_heads head_dim window rotary_base rotary_fraction softmax_scale rotary_scaling sinks "
        "qk_norm qk_norm_zero_centered gate qkv_bias proj_bias"
    )
    attends = True
    shares_state = False
    mad_layers: ClassVar = {
        "attention": {**_BIASES, "num_heads": 1},
        "mh-attention": {**_BIASES, "num_heads": 16},
        "sliding-attention": {**_BIASES, "num_heads": 1, "window": _MAD_WINDOW},
        "mh-sliding-attention": {**_BIASES, "num_heads": 16, "window": _MAD_WINDOW},
        "gated-attention": {"num_heads": 16, "qk_norm": "head", "gate": "element"},
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
        if self.rotary_scaling and not self.rotary_dim:
            raise problem("rotary_scaling", self.rotary_scaling.type, "null without channels that rotate")
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

    @property
    def _gates_per_head(self) -> int:
        return self.head_size if self.gate == "element" else 1

    def tensors(self) -> dict[str, TensorSpec]:
        queries = PackedPart("q", self.num_heads, self.head_size, "num_heads")
        keys = PackedPart("k", self.kv_heads, self.head_size, "num_kv_heads")
        values = PackedPart("v", self.kv_heads, self.head_size, "num_kv_heads")
        packed: tuple[PackedPart, ...] = (queries, keys, values)
        if self.gate != "none":
            packed += (PackedPart("gate", self.num_heads, self._gates_per_head, "num_heads"),)
        if self.forget_gate:
            packed += (PackedPart("forget", self.num_heads, key="num_heads"),)
        rows = sum(part.size for part in packed)
        specs = {"qkv.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed)}
        if self.qkv_bias:
            specs["qkv.bias"] = TensorSpec((rows,), Init("zeros"), packed, decay=False)
        if self.qk_norm != "none":
            init = Init("zeros" if self.qk_norm_zero_centered else "ones")
            for part in (queries, keys):
                size, parts = (part.size, (part,)) if self.qk_norm == "full" else (self.head_size, ())
                specs[f"{part.name}_norm_weight"] = TensorSpec((size,), init, parts, decay=False)
        for name in ["sinks"] * self.sinks + ["forget_bias"] * self.forget_gate:
            heads = PackedPart(name, self.num_heads, key="num_heads")
            specs[name] = TensorSpec((self.num_heads,), Init("zeros"), (heads,), decay=False)
        if self.output_norm:
            specs["output_norm_weight"] = TensorSpec((self.head_size,), Init("ones"), decay=False)
        specs["proj.weight"] = TensorSpec((self.hidden_size, queries.size), Init("output"), (queries,), axis=1)
        if self.proj_bias:
            specs["proj.bias"] = TensorSpec((self.hidden_size,), Init("zeros"), decay=False)
        return specs

    def core_flops(self, seq_len: int) -> int:
        return attention_flops(seq_len, self.num_heads, self.head_size, self.window)

    def state_size(self, seq_len: int) -> int:
        return self._held_tokens(seq_len) * (2 * self.kv_heads * self.head_size + self.num_heads * self.forget_gate)

    def state_bytes(self, seq_len: int, parameter_bytes: int) -> int:
        """Count the bytes of `state_size` elements; sums of log forget gates are in float64."""
        sums = self._held_tokens(seq_len) * self.num_heads * self.forget_gate
        return (self.state_size(seq_len) - sums) * parameter_bytes + 8 * sums

    def _held_tokens(self, seq_len: int) -> int:
        return min(seq_len, self.window or seq_len)
