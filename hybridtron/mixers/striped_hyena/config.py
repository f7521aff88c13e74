"""The three convolutions of StripedHyena 2 (Ku et al. 2025, arXiv 2503.01868): short explicit, medium regularised, long
implicit. All are q * conv(k * v) with grouped filters; q, k and v are short convolutions of projections.

Free taps start as those of a convolution, rates spread evenly in their logarithm; the authors' code draws both in
other ways.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hybridtron.mixers.contract import MixerConfig, check_divides
from hybridtron.mixers.facts import Facts
from hybridtron.ops.flops import long_conv_fft_flops, modal_filter_flops
from hybridtron.tensors import Init, PackedPart, TensorSpec

_GROUP_SIZE = 16  # channels that share an explicit filter by default


class StripedHyenaConfig(MixerConfig):
    """What the three share."""

    num_groups: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None,
        ge=1,
        description="Runs of channels that share a filter; by default one for every 16 channels where hidden_size is a "
        "multiple of 16, else, and with hyena_li, one for every channel.",
    )
    conv_kernel: int = Field(3, ge=1, description="Length of the short convolutions of q, k and v.")

    @model_validator(mode="after")
    def _groups_divide(self) -> StripedHyenaConfig:
        check_divides("num_groups", self.groups, self.hidden_size, "hidden_size")
        return self

    @property
    def groups(self) -> int:
        """Count the groups: by default one for 16 channels where that comes out even, else one for every channel."""
        even = self.hidden_size % _GROUP_SIZE == 0
        return self.num_groups or (self.hidden_size // _GROUP_SIZE if even else self.hidden_size)

    def tensors(self) -> dict[str, TensorSpec]:
        width, bound = self.hidden_size, self.conv_kernel**-0.5
        q, k, v = (PackedPart(name, self.groups, width // self.groups, "num_groups") for name in ("q", "k", "v"))
        groups = (PackedPart("filter", self.groups, 1, "num_groups"),)
        return {
            "in_proj.weight": TensorSpec((3 * width, width), Init("input"), (q, k, v)),
            "conv_weight": TensorSpec((3 * width, self.conv_kernel), Init("uniform", -bound, bound), (q, k, v)),
            **self.filter_tensors(groups, (v,)),
            "out_proj.weight": TensorSpec((width, width), Init("output"), (v,), axis=1),
        }

    def filter_tensors(self, groups: tuple[PackedPart, ...], channels: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        """Declare the parameters that make the filters."""
        raise NotImplementedError


class ExplicitFilterConfig(StripedHyenaConfig):
    """What filters of free taps share; subclasses give `filter_length` its default."""

    filter_length: int = Field(ge=1, description="Taps of a filter.")

    first_keys = "num_groups conv_kernel filter_length"

    def filter_tensors(self, groups: tuple[PackedPart, ...], channels: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        bound = self.filter_length**-0.5
        shape = (self.groups, self.filter_length)
        return {"filter_weight": TensorSpec(shape, Init("uniform", -bound, bound), groups)}

    def unseen_flops(self, seq_len: int) -> int:
        return long_conv_fft_flops(seq_len, self.groups, self.hidden_size, self.filter_length)

    def state_size(self, seq_len: int) -> int:
        """Count the inputs that the filters still reach, without those of the convolutions of q, k and v."""
        return (self.filter_length - 1) * self.hidden_size


class HyenaSEConfig(ExplicitFilterConfig):
    """StripedHyena 2's short explicit convolution: a filter of a few free taps for a group of channels."""

    type: Literal["hyena_se"]
    filter_length: int = Field(7, ge=1, description="Taps of a filter.")

    mad_layers: ClassVar = {"hyena-se": {}}


class HyenaMRConfig(ExplicitFilterConfig):
    """StripedHyena 2's medium regularised convolution: some hundred free taps under a window that decays at another
    rate for every group of channels, and a skip."""

    type: Literal["hyena_mr"]
    filter_length: int = Field(128, ge=1, description="Taps of a filter.")

    mad_layers: ClassVar = {"hyena-mr": {}}

    def filter_tensors(self, groups: tuple[PackedPart, ...], channels: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        skip = TensorSpec((self.hidden_size,), Init("normal", 0.0, 1.0), channels, decay=False)
        return {**super().filter_tensors(groups, channels), "skip": skip}


class HyenaLIConfig(StripedHyenaConfig):
    """StripedHyena 2's long implicit convolution: a filter that is a sum of decaying exponentials, and a skip."""

    type: Literal["hyena_li"]
    filter_order: Annotated[int, Facts(sets_state="free")] = Field(
        16, ge=1, description="Exponentials in a filter, and elements of a channel's state."
    )

    first_keys = "num_groups conv_kernel filter_order"
    float32_state: ClassVar = True
    mad_layers: ClassVar = {"hyena-li": {"filter_order": 16}}

    @property
    def groups(self) -> int:
        """Count the groups: by default one for every channel."""
        return self.num_groups or self.hidden_size

    def filter_tensors(self, groups: tuple[PackedPart, ...], channels: tuple[PackedPart, ...]) -> dict[str, TensorSpec]:
        shape = (self.groups, self.filter_order)
        residue = Init("normal", 0.0, 0.1 * self.filter_order**-0.5)
        return {
            "log_rate": TensorSpec(shape, Init("log_uniform", 0.001, 0.1), groups, decay=False, float32=True),
            "residues": TensorSpec(shape, residue, groups, decay=False, float32=True),
            "skip": TensorSpec((self.hidden_size,), Init("normal", 0.0, 1.0), channels, decay=False),
        }

    def core_flops(self, seq_len: int) -> int:
        return super().core_flops(seq_len) + modal_filter_flops(self.groups, self.filter_order, seq_len)

    def unseen_flops(self, seq_len: int) -> int:
        return long_conv_fft_flops(seq_len, self.groups, self.hidden_size, seq_len)

    def state_size(self, seq_len: int) -> int:
        return self.filter_order * self.hidden_size
