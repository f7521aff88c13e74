"""One linear layer for each group of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import always, register


def grouped_linear(rows: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Multiply each group of rows [n, in] by a weight [out, in] of its own; return [n, out].

    The first counts[0] rows belong to weight[0], the next counts[1] to weight[1], and so on. A group may be empty; the
    counts add up to n.
    """
    return _GroupedLinear.apply(rows, weight, tuple(counts))


def grouped_linear_reference(rows: Tensor, weight: Tensor, counts: Sequence[int]) -> Tensor:
    """Compute `grouped_linear` by its definition."""
    return torch.cat([group @ w.T for group, w in zip(rows.split(list(counts)), weight, strict=True)])


class _GroupedLinear(torch.autograd.Function):
    """Writes every group's result into place: autograd would build the whole weight's gradient once per group."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, counts: tuple[int, ...]) -> Tensor:
        out = rows.new_empty(len(rows), weight.shape[1])
        for group, w, y in zip(rows.split(counts), weight, out.split(counts), strict=True):
            torch.mm(group, w.T, out=y)
        ctx.save_for_backward(rows, weight)
        ctx.counts = counts
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight = ctx.saved_tensors
        counts = ctx.counts
        drows, dweight = torch.empty_like(rows), torch.empty_like(weight)
        groups = zip(rows.split(counts), weight, grad.split(counts), drows.split(counts), dweight, strict=True)
        for group, w, dy, dgroup, dw in groups:
            torch.mm(dy, w, out=dgroup)
            torch.mm(dy.T, group, out=dw)
        return drows, dweight, None


register("grouped_linear", "experts", always("PyTorch, a matrix product per expert", grouped_linear))
