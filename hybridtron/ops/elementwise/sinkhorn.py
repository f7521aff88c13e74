"""Sinkhorn's iteration: matrices of positive numbers whose rows and columns add up to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.precision import by_formula


def sinkhorn(x: Tensor, iterations: int, eps: float) -> Tensor:
    """Divide columns, then `iterations` - 1 times rows and columns, by their sums + eps; x [..., n, n], positive.

    (Sinkhorn & Knopp 1967; as DeepSeek V4 has it, columns are those of the second-last axis.) The backward pass needs x
    alone and computes the rest again.
    """
    if by_formula():
        return sinkhorn_reference(x, iterations, eps)
    result: Tensor = _Sinkhorn.apply(x, iterations, eps)
    return result


def sinkhorn_reference(x: Tensor, iterations: int, eps: float) -> Tensor:
    """Compute `sinkhorn` by its formula."""
    x = x / (x.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        x = x / (x.sum(-1, keepdim=True) + eps)
        x = x / (x.sum(-2, keepdim=True) + eps)
    return x


class _Sinkhorn(torch.autograd.Function):
    """Works on [n, n, matrices], where sums over rows and columns are sums of vectors."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, iterations: int, eps: float) -> Tensor:
        matrices = x.flatten(0, -3).permute(1, 2, 0).contiguous()
        ctx.save_for_backward(matrices)
        ctx.iterations, ctx.eps, ctx.shape = iterations, eps, x.shape
        for axis in _axes(iterations):
            matrices = matrices / matrices.sum(axis, keepdim=True).add_(eps)
        return matrices.permute(2, 0, 1).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Go back through y = x / (sum x + eps): dx = (dy - sum dy y) / (sum x + eps)."""
        (matrices,) = ctx.saved_tensors
        axes, quotients, sums = _axes(ctx.iterations), [], []
        for axis in axes:
            sums.append(matrices.sum(axis, keepdim=True).add_(ctx.eps))
            matrices = matrices / sums[-1]
            quotients.append(matrices)
        g = grad.flatten(0, -3).permute(1, 2, 0).contiguous()
        for axis, y, total in zip(reversed(axes), reversed(quotients), reversed(sums), strict=True):
            g = (g - (g * y).sum(axis, keepdim=True)).div_(total)
        return g.permute(2, 0, 1).reshape(ctx.shape), None, None


def _axes(iterations: int) -> list[int]:
    """Return the axis of [n, n, matrices] that each division sums over."""
    return [0, *[1, 0] * (iterations - 1)]
