"""A linear layer as the megatron backend's: what times and checks the sums of weight gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hybridtron.ops.weight_gradient import add_weight_gradient


class SummedLinear(torch.autograd.Function):
    """A linear layer [n, in] -> [n, out] whose weight gradient is added to a sum in at least float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        total = torch.zeros_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
        add_weight_gradient(total, grad, x)
        return grad @ weight, total.to(weight.dtype)
