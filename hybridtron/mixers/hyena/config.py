"""Hyena of order 2 (Poli et al. 2023, arXiv 2302.10866): gates around a convolution as long as the sequence."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import check_divides
from hybridtron.mixers.implicit_filter.config import ImplicitFilterConfig
from hybridtron.tensors import PackedPart, TensorSpec

ROLES = 3  # in which projections meet in a channel


class ProjectedHyenaConfig(ImplicitFilterConfig):
    """What Hyena and its multi-head form share: three projections, each through a short convolution.

    With `projection_groups` G the projections are G times narrower than the channels: run g of the channels takes
    projection (g + i G) modulo 3 in role i, so that runs share projections in exchanged roles.
    """

    expand: int = Field(1, ge=1, description="Inner width as a multiple of hidden_size.")
    projection_groups: int = Field(
        1, ge=1, description="Runs of channels that share the same projections, in exchanged roles."
    )
    conv_kernel: int = Field(3, ge=1, description="Length of the short convolutions.")
    bias: bool = Field(False, description="Biases on the projections.")

    first_keys = "filter_order filter_embedding filter_layers filter_length expand projection_groups conv_kernel bias"

    @model_validator(mode="after")
    def _groups_divide(self) -> ProjectedHyenaConfig:
        check_divides("projection_groups", self.projection_groups, self.filters, "the number of filters,")
        return self

    @property
    def inner_size(self) -> int:
        return self.expand * self.hidden_size

    def tensors(self) -> dict[str, TensorSpec]:
        groups, width, key = self.projection_groups, self.inner_size // self.filters, self._filters_key
        projected = tuple(PackedPart(f"p{i}", self.filters // groups, width, key) for i in range(ROLES))
        channels = tuple(PackedPart(f"run {g}", self.filters // groups, width, key) for g in range(groups))
        convolved = tuple(
            PackedPart(f"p{i} {g}", self.filters // groups, width, key) for i in range(ROLES) for g in range(groups)
        )
        filters = tuple(PackedPart(f"run {g}", self.filters // groups, 1, key) for g in range(groups))
        return self.gated_conv_tensors(projected, convolved, filters, channels, self.conv_kernel, self.bias)

    def state_size(self, seq_len: int) -> int:
        """Count as the MAD paper does (Poli et al. 2024, arXiv 2403.17844): `filter_order` elements for each entry that
        is convolved. Steps are exact and keep all inputs instead."""
        return self.inner_size * (self.inner_size // self.filters) * self.filter_order

    @property
    def _filters_key(self) -> str:
        return "expand"


class HyenaConfig(ProjectedHyenaConfig):
    """Hyena, order 2: q * conv(k * v), with q, k and v short convolutions of projections, and an implicit filter for
    every channel."""

    type: Literal["hyena"]

    mad_layers: ClassVar = {"hyena": {"expand": 4, "filter_order": 4, "projection_groups": 4, "bias": True}}

    @property
    def filters(self) -> int:
        return self.inner_size
