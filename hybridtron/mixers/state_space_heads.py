"""The keys that state spaces with one decay per head share: Mamba-2 and Mamba-3."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from hybridtron.config.schema import problem
from hybridtron.mixers.contract import MixerConfig, check_divides, nearest_divisors
from hybridtron.mixers.facts import Facts


class StateSpaceHeadsConfig(MixerConfig):
    """Heads of an inner width, each with a state [head_dim, state_dim]; groups of heads share B and C."""

    expand: float = Field(2.0, gt=0, description="Inner width as a multiple of hidden_size.")
    head_dim: Annotated[int, Facts(at_small_width="head_channels")] = Field(64, ge=1, description="Channels per head.")
    state_dim: Annotated[int, Facts(sets_state="free")] = Field(
        128, ge=1, description="State elements per channel (N)."
    )
    num_groups: Annotated[int | None, Facts(at_small_width="derived")] = Field(
        None,
        ge=1,
        description="Groups of heads that share B and C; by default 2, or 1 where the heads are odd in number.",
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> StateSpaceHeadsConfig:
        inner = self.expand * self.hidden_size
        whole = math.isclose(inner, self.inner_size)
        if not whole or self.inner_size % self.head_dim:
            expected = f"a divisor of the inner width, expand x hidden_size = {inner:g}"
            nearest = nearest_divisors(self.inner_size, self.head_dim) if whole else ""
            raise problem("head_dim", self.head_dim, f"{expected} (nearest: {nearest})" if nearest else expected)
        check_divides("num_groups", self.groups, self.num_heads, "the number of heads,")
        return self

    @property
    def inner_size(self) -> int:
        return round(self.expand * self.hidden_size)

    @property
    def num_heads(self) -> int:
        return self.inner_size // self.head_dim

    @property
    def groups(self) -> int:
        return self.num_groups or math.gcd(self.num_heads, 2)
