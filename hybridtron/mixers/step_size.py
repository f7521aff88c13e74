"""Initial bias of step sizes that a softplus makes positive, as in Mamba and what descends from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_SMALLEST = 1e-4  # floor of initial step sizes, as in Mamba-2's code


@dataclass(frozen=True)
class StepSizeBias:
    """The inverse softplus of log-uniform step sizes in [low, high]."""

    low: float = 0.001
    high: float = 0.1

    def __call__(self, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        import torch

        low, high = math.log(self.low), math.log(self.high)
        steps = torch.rand(shape, generator=generator).mul_(high - low).add_(low).exp_().clamp_min_(_SMALLEST)
        return steps + torch.log(-torch.expm1(-steps))
