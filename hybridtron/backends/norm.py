"""RMS norm as a module, over the last axis."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.ops.elementwise.norm import rms_norm
from hybridtron.ops.elementwise.precision import accumulation_dtype


class RMSNorm(nn.Module):
    def __init__(self, weight: nn.Parameter, eps: float, zero_centered: bool) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.zero_centered = zero_centered

    def forward(self, x: Tensor) -> Tensor:
        weight = 1 + self.weight.to(accumulation_dtype(self.weight)) if self.zero_centered else self.weight
        return rms_norm(x, weight, self.eps)

    def step(self, x: Tensor) -> Tensor:
        """Norm one token of every sequence [b, h]; the fused form is for many tokens."""
        if self.zero_centered or x.device.type != "cpu" or not x.dtype == self.weight.dtype == torch.float32:
            return self(x)
        return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
