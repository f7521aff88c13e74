"""AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) of stacked models, each with its learning rate and decay."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


class StackedAdamW:
    """State for parameters [cells, parameters]."""

    def __init__(self, parameters: Tensor, betas: tuple[float, float]) -> None:
        self.betas = betas
        self.mean = torch.zeros_like(parameters)
        self.square = torch.zeros_like(parameters)
        self.steps = 0

    def step(self, parameters: Tensor, gradients: Tensor, lr: Tensor, decay: Tensor) -> None:
        """Update in place. lr is [cells, 1]; decay is [cells, parameters], or what broadcasts to it."""
        self.steps += 1
        first, second = self.betas
        self.mean.lerp_(gradients, 1 - first)
        self.square.mul_(second).addcmul_(gradients, gradients, value=1 - second)
        parameters.mul_(1 - lr * decay)
        spread = (self.square / (1 - second**self.steps)).sqrt_().add_(EPSILON)
        parameters.sub_(self.mean / spread * (lr / (1 - first**self.steps)))

    def keep(self, cells: Tensor) -> None:
        """Drop all cells but these, [kept] indices."""
        self.mean, self.square = self.mean[cells], self.square[cells]
