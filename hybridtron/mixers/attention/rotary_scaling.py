"""The `rotary_scaling` key of attention: how rotary frequencies are stretched. Names are those of Hugging Face."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from hybridtron.config.schema import Strict, problem

if TYPE_CHECKING:
    from torch import Tensor


class LinearScaling(Strict):
    """All frequencies divided by a factor (position interpolation, arXiv 2306.15595)."""

    type: Literal["linear"]
    factor: float = Field(ge=1, description="Divides the frequencies.")

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the frequencies [r] to use in place of `base`'s own."""
        return frequencies / self.factor

    @property
    def magnitude(self) -> float:
        """Return what rotated queries and keys are multiplied by."""
        return 1.0


class Llama3Scaling(Strict):
    """Low frequencies divided, high ones kept (Llama 3.1)."""

    type: Literal["llama3"]
    factor: float = Field(ge=1, description="Divides the low frequencies.")
    low_freq_factor: float = Field(
        1.0, gt=0, description="Frequencies of fewer turns in the original length are divided."
    )
    high_freq_factor: float = Field(4.0, gt=0, description="Frequencies of more turns are kept.")
    original_max_position_embeddings: int = Field(8192, ge=1, description="The original length, in tokens.")

    @model_validator(mode="after")
    def _in_order(self) -> Llama3Scaling:
        if self.high_freq_factor <= self.low_freq_factor:
            raise problem("high_freq_factor", self.high_freq_factor, f"above low_freq_factor {self.low_freq_factor:g}")
        return self

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the frequencies [r] to use in place of `base`'s own."""
        from hybridtron.ops.attention.rotary_scaling import llama3_frequencies

        length = self.original_max_position_embeddings
        return llama3_frequencies(frequencies, self.factor, self.low_freq_factor, self.high_freq_factor, length)

    @property
    def magnitude(self) -> float:
        """Return what rotated queries and keys are multiplied by."""
        return 1.0


class YarnScaling(Strict):
    """Low frequencies divided, high ones kept, queries and keys made larger (YaRN, arXiv 2309.00071)."""

    type: Literal["yarn"]
    factor: float = Field(ge=1, description="Divides the low frequencies.")
    original_max_position_embeddings: int = Field(ge=1, description="The original length, in tokens.")
    beta_fast: float = Field(32.0, gt=0, description="Frequencies of more turns in the original length are kept.")
    beta_slow: float = Field(1.0, gt=0, description="Frequencies of fewer turns are divided.")
    truncate: bool = Field(True, description="Whether both borders are rounded to whole indices of frequencies.")
    attention_factor: float | None = Field(
        None, gt=0, description="Multiplies rotated queries and keys; by default 0.1 ln(factor) + 1."
    )

    @model_validator(mode="after")
    def _in_order(self) -> YarnScaling:
        if self.beta_fast < self.beta_slow:
            raise problem("beta_fast", self.beta_fast, f"at least beta_slow {self.beta_slow:g}")
        return self

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the frequencies [r] to use in place of `base`'s own."""
        from hybridtron.ops.attention.rotary_scaling import yarn_frequencies

        length = self.original_max_position_embeddings
        return yarn_frequencies(frequencies, base, self.factor, self.beta_fast, self.beta_slow, length, self.truncate)

    @property
    def magnitude(self) -> float:
        """Return what rotated queries and keys are multiplied by."""
        return self.attention_factor or 0.1 * math.log(self.factor) + 1


RotaryScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="type")]
