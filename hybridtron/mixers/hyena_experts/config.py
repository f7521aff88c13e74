"""Hyena experts (Poli et al. 2024, arXiv 2403.17844): narrow Hyenas side by side, of which every token reads a few."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.implicit_filter.config import ImplicitFilterConfig
from hybridtron.tensors import Init, PackedPart, TensorSpec


class HyenaExpertsConfig(ImplicitFilterConfig):
    """Hyena experts: all of them take in every token; a token's output is that of its `top_k` best experts, weighted by
    a softmax over the scores of these alone. The filters of every expert decay at all rates, as in the authors' code.

    Parallelism cuts every expert's channels, so that each process has all experts that a token may choose.
    """

    type: Literal["hyena_experts"]
    num_experts: int = Field(8, ge=1, description="Experts.")
    top_k: int = Field(2, ge=1, description="Experts whose outputs a token gets.")
    expert_size: Annotated[int, Facts(at_small_width="proportional")] = Field(
        16, ge=1, description="Channels of an expert."
    )
    conv_kernel: int = Field(3, ge=1, description="Length of the short convolutions.")
    bias: bool = Field(False, description="Biases on the projections and the router.")

    first_keys = (
        "filter_order filter_embedding filter_layers filter_length num_experts top_k expert_size conv_kernel bias"
    )
    projection_groups: ClassVar = 1
    multiplied = ("router_weight",)
    mad_layers: ClassVar = {"hyena-experts": {"num_experts": 8, "expert_size": 16, "filter_order": 16, "bias": True}}

    @model_validator(mode="after")
    def _enough_experts(self) -> HyenaExpertsConfig:
        if self.top_k > self.num_experts:
            raise problem("top_k", self.top_k, f"at most num_experts {self.num_experts}")
        return self

    @property
    def inner_size(self) -> int:
        return self.num_experts * self.expert_size

    @property
    def filters(self) -> int:
        return self.inner_size

    @property
    def decay_runs(self) -> int:
        return self.num_experts

    def tensors(self) -> dict[str, TensorSpec]:
        experts = tuple(PackedPart(f"expert {i}", self.expert_size, 1, "expert_size") for i in range(self.num_experts))
        projected = tuple(replace(part, name=f"{role} {part.name}") for role in "qkv" for part in experts)
        one = (PackedPart("expert", self.expert_size, 1, "expert_size"),)
        specs = self.gated_conv_tensors(projected, projected, experts, one, self.conv_kernel, self.bias)
        specs["router_weight"] = TensorSpec((self.num_experts, self.hidden_size), Init("input"))
        if self.bias:
            specs["router_bias"] = TensorSpec((self.num_experts,), Init("zeros"), decay=False)
        return specs

    def state_size(self, seq_len: int) -> int:
        """Count as the MAD paper does: `filter_order` elements for each channel of every expert. Steps are exact and
        keep all inputs instead."""
        return self.inner_size * self.filter_order
