"""Linear attention with a constant decay per head: MiniMax's lightning attention, RetNet's retention, simple GLA."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PrivateAttr, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import linear_attention_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

_RETNET = {"decay": "retnet", "activation": "none", "norm": "head", "gate": "silu", "rotary": True}


class LightningAttentionConfig(MixerConfig):
    """Lightning attention as in MiniMax-01 (arXiv 2501.08313): decays by head and depth, SiLU on queries, keys and
    values, RMS norm of the whole width, sigmoid gate. RetNet (arXiv 2307.08621) is `decay: retnet`, `activation: none`,
    `norm: head`, `gate: silu`, `rotary: true` and a head_dim of twice key_dim."""

    type: Literal["lightning_attention"]
    num_heads: Annotated[int, Facts(sets_state="divisor", at_small_width="heads")] = Field(ge=1, description="Heads.")
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Value channels per head; by default hidden_size / num_heads."
    )
    key_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Query and key channels per head; by default head_dim."
    )
    decay: Literal["lightning", "retnet", "constant"] = Field(
        "lightning",
        description="Factor that the state of head h of H keeps per token. lightning: exp(-s) with "
        "s = 2^(-8 (h + 1) / H) (1 - l / (L - 1)), for the l-th of the L layers of sequences; retnet: 1 - 2^(-5 - h); "
        "constant: `decay_factor`.",
    )
    decay_factor: float | None = Field(
        None, gt=0, le=1, description="With decay constant, the factor of all heads; 1 forgets nothing."
    )
    activation: Literal["silu", "none"] = Field("silu", description="Applied to queries, keys and values.")
    norm: Literal["full", "head"] = Field(
        "full", description="RMS norm of the outputs: over all heads together, or over each with shared weights."
    )
    norm_eps: float | None = Field(
        None, gt=0, description="Added to the mean square in the norm of the outputs; by default the model's norm_eps."
    )
    gate: Literal["sigmoid", "silu"] = Field("sigmoid", description="Activation of the gate on the normed outputs.")
    rotary: bool = Field(False, description="Rotate queries and keys by their positions.")
    rotary_base: float = Field(10000.0, gt=0, description="Base of the rotary frequencies.")
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk; changes speed, not results."
    )

    float32_state: ClassVar = True
    mad_layers: ClassVar = {"retention": {"num_heads": 8, **_RETNET}, "lightning-attention": {"num_heads": 8}}
    _layer: tuple[int, int] = PrivateAttr((0, 1))

    @model_validator(mode="after")
    def _keys_agree(self) -> LightningAttentionConfig:
        if self.head_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        if self.rotary and self.key_size % 2:
            raise problem("key_dim", self.key_size, "an even number with rotary")
        if self.decay == "constant" and self.decay_factor is None:
            raise problem("decay_factor", None, "a factor in (0, 1] with decay constant")
        if self.decay != "constant" and self.decay_factor is not None:
            raise problem("decay_factor", self.decay_factor, f"nothing with decay {self.decay}")
        return self

    @property
    def value_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def key_size(self) -> int:
        return self.key_dim or self.value_size

    def for_layer(self, index: int, count: int) -> LightningAttentionConfig:
        copy = self.model_copy()
        copy._layer = (index, count)
        return copy

    def log_decays(self) -> list[float]:
        """Return the logarithm of the decay per token of each head, in the layer that `for_layer` set."""
        heads = range(self.num_heads)
        if self.decay == "constant":
            return [math.log(self.decay_factor or 1.0) for _ in heads]
        if self.decay == "retnet":
            return [math.log1p(-(2.0 ** (-5 - head))) for head in heads]
        index, count = self._layer
        factor = 1 - index / (count - 1 + 1e-5) + 1e-5  # as in MiniMax's code: the last layer hardly fades
        return [-(2.0 ** (-8 * (head + 1) / self.num_heads)) * factor for head in heads]

    def tensors(self) -> dict[str, TensorSpec]:
        sizes = {"q": self.key_size, "k": self.key_size, "v": self.value_size, "z": self.value_size}
        packed = tuple(PackedPart(name, self.num_heads, size, "num_heads") for name, size in sizes.items())
        values = packed[2]
        norm = TensorSpec((self.value_size,), Init("ones"), decay=False)
        if self.norm == "full":
            norm = TensorSpec((values.size,), Init("ones"), (values,), decay=False)
        return {
            "in_proj.weight": TensorSpec((sum(part.size for part in packed), self.hidden_size), Init("input"), packed),
            "norm_weight": norm,
            "out_proj.weight": TensorSpec((self.hidden_size, values.size), Init("output"), (values,), axis=1),
        }

    def core_flops(self, seq_len: int) -> int:
        sizes = (self.num_heads, self.key_size, self.value_size, self.chunk_size)
        return linear_attention_flops(seq_len, *sizes, normalize=False)

    def state_size(self, seq_len: int) -> int:
        return self.num_heads * self.key_size * self.value_size
