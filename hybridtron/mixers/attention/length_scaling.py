"""The `length_scaling` key of attention: how queries grow with the logarithm of the tokens that they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from hybridtron.config.schema import Strict

if TYPE_CHECKING:
    from torch import Tensor


class LengthScaling(Strict):
    """Queries of token n (from 1) times 1 + scale * ln(x), so that softmaxes over more keys stay as sharp (arXiv
    2501.19399): x = 1 + floor(n / floor) (Llama 4), or x = max(1, n / floor) (Inkling)."""

    type: Literal["llama4", "inkling"]
    scale: float = Field(0.1, gt=0, description="Multiplies the logarithm.")
    floor: int = Field(8192, ge=1, description="Tokens up to which queries stay as they are.")

    def factors(self, tokens: Tensor) -> Tensor:
        """Return what the queries of tokens, numbered from 1, are multiplied by."""
        from hybridtron.ops.attention.length_scaling import inkling_factors, llama4_factors

        return (llama4_factors if self.type == "llama4" else inkling_factors)(tokens, self.scale, self.floor)
