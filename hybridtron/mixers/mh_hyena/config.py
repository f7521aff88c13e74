"""Multi-head Hyena (Massaroli et al. 2023, arXiv 2310.18780, section 4): Hyena on outer products, a filter a head."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import check_divides
from hybridtron.mixers.facts import Facts
from hybridtron.mixers.hyena.config import ProjectedHyenaConfig
from hybridtron.ops.flops import outer_conv_flops


class MultiHeadHyenaConfig(ProjectedHyenaConfig):
    """Multi-head Hyena: the outer products of k and v of a head, convolved with its filter and read out by q."""

    type: Literal["mh_hyena"]
    num_heads: Annotated[int, Facts(at_small_width="heads")] = Field(
        ge=1, description="Heads, each with a filter and a matrix of its channels as state."
    )

    first_keys = f"{ProjectedHyenaConfig.first_keys} num_heads"
    mad_layers: ClassVar = {"mh-hyena": {"num_heads": 16, "filter_order": 2, "projection_groups": 4, "bias": True}}

    @model_validator(mode="after")
    def _heads_divide(self) -> MultiHeadHyenaConfig:
        check_divides("num_heads", self.num_heads, self.inner_size, "the inner width, expand x hidden_size =")
        return self

    @property
    def filters(self) -> int:
        return self.num_heads

    @property
    def head_dim(self) -> int:
        return self.inner_size // self.num_heads

    def core_flops(self, seq_len: int) -> int:
        return super().core_flops(seq_len) + outer_conv_flops(seq_len, self.num_heads, self.head_dim)[0]

    def unseen_flops(self, seq_len: int) -> int:
        return outer_conv_flops(seq_len, self.num_heads, self.head_dim)[1]

    @property
    def _filters_key(self) -> str:
        return "num_heads"
