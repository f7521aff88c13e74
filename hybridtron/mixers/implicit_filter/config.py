"""Hyena's implicit filters (Poli et al. 2023, arXiv 2302.10866, section 3.3): values of a small network of the
position, under a window that decays at another rate in every filter. Their parameters do not grow with their length.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.tensors import Init, PackedPart, TensorSpec


class ImplicitFilterConfig(MixerConfig):
    """Base of the primitives that convolve with implicit filters."""

    filter_order: Annotated[int, Facts(sets_state="free")] = Field(
        16, ge=1, description="Width of the network that makes the filters; their state is counted as so many elements."
    )
    filter_embedding: int = Field(3, ge=3, description="Features of a position: itself, and cosines and sines; odd.")
    filter_layers: int = Field(2, ge=0, description="Inner layers of the network that makes the filters.")
    filter_length: Annotated[int, Facts(spans_sequence=True)] = Field(
        2048, ge=2, description="Tokens over which a position's features and the windows run; filters go on beyond."
    )

    @field_validator("filter_embedding")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise problem("", value, f"an odd number (nearest: {value - 1}, {value + 1})")
        return value

    def filter_tensors(self, filters: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        """Declare the network's parameters; only its last layer is cut, by `filters`."""
        order, features, layers = self.filter_order, self.filter_embedding, self.filter_layers
        outer, inner = (Init("uniform", -(width**-0.5), width**-0.5) for width in (features, order))
        return {
            "filter.input_weight": TensorSpec((order, features), outer, decay=False),
            "filter.input_bias": TensorSpec((order,), outer, decay=False),
            "filter.inner_weight": TensorSpec((layers, order, order), inner, decay=False),
            "filter.inner_bias": TensorSpec((layers, order), inner, decay=False),
            "filter.frequency": TensorSpec((order,), Init("ones"), decay=False),
            "filter.output_weight": TensorSpec((_size(filters), order), inner, filters, decay=False),
        }

    def filter_flops(self, seq_len: int, filters: int) -> int:
        """Count the FLOPs of making the filters, which all sequences of a pass share."""
        order = self.filter_order
        return 2 * seq_len * order * (self.filter_embedding + self.filter_layers * order + filters)


def _size(parts: tuple[PackedPart, ...]) -> int:
    return sum(part.size for part in parts)
