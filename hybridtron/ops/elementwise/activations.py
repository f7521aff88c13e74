"""Activations of the plain MLP, by the name that configs use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import kernels, otherwise, plain, register, select
from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order, split_rows
from hybridtron.ops.native.library import require_kernels


def gelu(x: Tensor) -> Tensor:
    """Compute GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415)."""
    return F.gelu(x, approximate="tanh")


def relu2(x: Tensor) -> Tensor:
    """Compute relu(x)^2 (So et al. 2021, arXiv 2109.08668)."""
    return select("relu2", x)(x)


class _SquaredReLU(torch.autograd.Function):
    """Its derivative, 2 relu(x), is 0 where x is negative by itself: fewer passes than through two steps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, native: bool) -> Tensor:
        order = row_order(x)
        rows = as_rows(x, order)
        out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        if native:
            require_kernels().squared_relu_forward(*rows.shape, rows, rows.stride(0), out)
        else:
            for block, y in split_rows(rows, out):
                torch.clamp_min(block, 0, out=y).mul_(y)
        ctx.save_for_backward(rows)
        ctx.shape, ctx.order, ctx.native = x.shape, order, native
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        dx, grads = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device), as_rows(grad, ctx.order)
        if ctx.native:
            require_kernels().squared_relu_backward(*rows.shape, rows, rows.stride(0), grads, grads.stride(0), dx)
        else:
            for block, dy, out in split_rows(rows, grads, dx):
                torch.clamp_min(block, 0, out=out).mul_(dy).mul_(2)
        return from_rows(dx, ctx.shape, ctx.order), None


register(
    "relu2",
    "squared relu",
    plain(lambda x: F.relu(x).square()),
    kernels(lambda x: _SquaredReLU.apply(x, True)),
    otherwise("PyTorch, in blocks of rows", lambda x: _SquaredReLU.apply(x, False)),
    sample=lambda one: (one,),
)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": gelu, "relu": F.relu, "relu2": relu2, "silu": F.silu}
