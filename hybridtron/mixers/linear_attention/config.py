"""Linear attention: weights that are inner products of features, so that a sum replaces the softmax's memory."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import linear_attention_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

_MAD = {"feature_map": "hadamard", "shared_feature_map": True, "normalize": True, "eps": 1e-12}


class LinearAttentionConfig(MixerConfig):
    """Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236) with a choice of feature maps."""

    type: Literal["linear_attention"]
    num_heads: Annotated[int, Facts(sets_state="divisor", at_small_width="heads")] = Field(
        ge=1, description="Heads, each with its own queries, keys and values."
    )
    head_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Value channels per head; by default hidden_size / num_heads."
    )
    key_dim: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None, ge=1, description="Query and key channels per head; by default head_dim."
    )
    feature_map: Literal["elu", "relu", "identity", "taylor", "hadamard"] = Field(
        "elu",
        description="Of queries and keys: elu(x) + 1; relu(x); x; the second-order expansion of exp (Based); or the "
        "product of two learned linear maps (as in MAD).",
    )
    normalize: bool | None = Field(
        None,
        description="Divide by the sum of the weights; by default with elu, relu and taylor. With identity and "
        "hadamard, as in MAD, the sum may be near 0 and outputs of any size.",
    )
    shared_feature_map: bool = Field(
        False, description="With hadamard: one learned map of queries and one of keys for all heads, with biases."
    )
    eps: float = Field(1e-6, gt=0, description="Added to the sum of the weights where outputs are divided by it.")
    chunk_size: Annotated[int, Facts(speed_only=True)] = Field(
        64, ge=1, description="Tokens per chunk; changes speed, not results."
    )

    first_keys = "num_heads head_dim key_dim feature_map normalize shared_feature_map eps chunk_size"
    multiplied = ("feature_weight",)
    float32_state: ClassVar = True
    mad_layers: ClassVar = {
        "linear-attention": {**_MAD, "num_heads": 1},
        "mh-linear-attention": {**_MAD, "num_heads": 16},
    }

    @model_validator(mode="after")
    def _heads_divide(self) -> LinearAttentionConfig:
        if self.head_dim is None:
            check_divides("num_heads", self.num_heads, self.hidden_size, "hidden_size")
        if self.shared_feature_map and self.feature_map != "hadamard":
            raise problem(
                "shared_feature_map", True, f"false with feature_map {self.feature_map}, which has no weights"
            )
        return self

    @property
    def normalizes(self) -> bool:
        return self.feature_map in ("elu", "relu", "taylor") if self.normalize is None else self.normalize

    @property
    def value_size(self) -> int:
        return self.head_dim or self.hidden_size // self.num_heads

    @property
    def key_size(self) -> int:
        return self.key_dim or self.value_size

    @property
    def features(self) -> int:
        """Count the features per head."""
        return 1 + self.key_size + self.key_size**2 if self.feature_map == "taylor" else self.key_size

    def tensors(self) -> dict[str, TensorSpec]:
        queries, keys = (PackedPart(name, self.num_heads, self.key_size, "num_heads") for name in "qk")
        values = PackedPart("v", self.num_heads, self.value_size, "num_heads")
        packed = (queries, keys, values)
        rows = sum(part.size for part in packed)
        specs = {"qkv.weight": TensorSpec((rows, self.hidden_size), Init("input"), packed)}
        if self.feature_map == "hadamard":
            heads, names = 1 if self.shared_feature_map else self.num_heads, ("q1", "q2", "k1", "k2")
            maps = tuple(PackedPart(name, heads, self.key_size, "num_heads") for name in names)
            bound, rows = self.key_size**-0.5, 4 * heads * self.key_size
            of_heads = () if self.shared_feature_map else maps
            specs["feature_weight"] = TensorSpec((rows, self.key_size), Init("uniform", -bound, bound), of_heads)
            if self.shared_feature_map:
                specs["feature_bias"] = TensorSpec((rows,), Init("zeros"), decay=False)
        specs["proj.weight"] = TensorSpec((self.hidden_size, values.size), Init("output"), (values,), axis=1)
        return specs

    def core_flops(self, seq_len: int) -> int:
        sizes = (self.num_heads, self.features, self.value_size, self.chunk_size)
        again = (self.num_heads - 1) * self.shared_feature_map  # heads beside the first that go through a shared map
        mapped = 2 * seq_len * again * 4 * self.key_size**2
        return mapped + linear_attention_flops(seq_len, *sizes, self.normalizes)

    def state_size(self, seq_len: int) -> int:
        return self.num_heads * self.features * (self.value_size + self.normalizes)
