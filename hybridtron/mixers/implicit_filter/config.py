"""Hyena's implicit filters (Poli et al. 2023, arXiv 2302.10866, section 3.3): values of a small network of the
position, under a window that decays at another rate in every filter. Their parameters do not grow with their length.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import long_conv_fft_flops
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

    def gated_conv_tensors(
        self,
        projected: tuple[PackedPart, ...],
        convolved: tuple[PackedPart, ...],
        filters: tuple[PackedPart, ...],
        outputs: tuple[PackedPart, ...],
        conv_kernel: int,
        bias: bool,
    ) -> dict[str, TensorSpec]:
        """Declare projections, with biases on request, a short convolution of them, filters and their skips."""
        width, rows, channels, bound = self.hidden_size, _size(projected), _size(convolved), conv_kernel**-0.5
        conv = Init("uniform", -bound, bound)
        specs = {
            "in_proj.weight": TensorSpec((rows, width), Init("input"), projected),
            "conv_weight": TensorSpec((channels, conv_kernel), conv, convolved),
            "conv_bias": TensorSpec((channels,), conv, convolved, decay=False),
            **self.filter_tensors(filters),
            "skip": TensorSpec((_size(filters),), Init("normal", 0.0, 1.0), filters, decay=False),
            "out_proj.weight": TensorSpec((width, _size(outputs)), Init("output"), outputs, axis=1),
        }
        if bias:
            specs["in_proj.bias"] = TensorSpec((rows,), Init("zeros"), projected, decay=False)
            specs["out_proj.bias"] = TensorSpec((width,), Init("zeros"), decay=False)
        return specs

    def filter_tensors(self, filters: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        """Declare the network's parameters; only its last layer is cut, by `filters`."""
        order, features, layers = self.filter_order, self.filter_embedding, self.filter_layers
        outer, inner = (Init("uniform", -(width**-0.5), width**-0.5) for width in (features, order))
        inner_layers = (
            {
                "filter.inner_weight": TensorSpec((layers, order, order), inner, decay=False),
                "filter.inner_bias": TensorSpec((layers, order), inner, decay=False),
            }
            if layers
            else {}
        )
        return {
            "filter.input_weight": TensorSpec((order, features), outer, decay=False),
            "filter.input_bias": TensorSpec((order,), outer, decay=False),
            **inner_layers,
            "filter.frequency": TensorSpec((order,), Init("ones"), decay=False),
            "filter.output_weight": TensorSpec((_size(filters), order), inner, filters, decay=False),
        }

    @property
    def decay_runs(self) -> int:
        """Count the runs of filters among which the decay rates are dealt in turn, so that each has fast and slow."""
        return 1

    @property
    def filters(self) -> int:
        """Count the units that have a filter each: channels or heads."""
        raise NotImplementedError

    def core_flops(self, seq_len: int) -> int:
        """Count the FLOPs of making the filters, which all sequences of a pass share, and of `unseen_flops`."""
        order = self.filter_order
        per_token = order * (self.filter_embedding + self.filter_layers * order + self.filters)
        return 2 * seq_len * per_token + self.unseen_flops(seq_len)

    def unseen_flops(self, seq_len: int) -> int:
        """Count the transforms of a convolution of as many channels as filters."""
        return long_conv_fft_flops(seq_len, self.filters, self.filters, seq_len)


def _size(parts: tuple[PackedPart, ...]) -> int:
    return sum(part.size for part in parts)
