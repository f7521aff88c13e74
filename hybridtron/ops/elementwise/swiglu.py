"""SwiGLU (Shazeer 2020, arXiv 2002.05202): a linear layer gated by the SiLU of another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import kernels, otherwise, plain, register, select
from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order, split_rows
from hybridtron.ops.native.library import require_kernels

aten = torch.ops.aten


def swiglu(x: Tensor) -> Tensor:
    """Compute silu(gate) * up for x [..., 2f] whose first half is the gate and second half is up; returns [..., f]."""
    return select("swiglu", x)(x)


def swiglu_reference(x: Tensor) -> Tensor:
    """Compute `swiglu` by its formula."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone: the activation is cheaper to compute again than to write and read back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, native: bool) -> Tensor:
        order = row_order(x)
        rows = as_rows(x, order)
        out = torch.empty(len(rows), x.shape[-1] // 2, dtype=x.dtype, device=x.device)
        if native:
            require_kernels().swiglu_forward(*out.shape, rows, rows.stride(0), out)
        else:
            for gate, up, y in split_rows(*rows.chunk(2, -1), out):
                aten.silu.out(gate, out=y).mul_(up)
        ctx.save_for_backward(rows)
        ctx.shape, ctx.order, ctx.native = x.shape, order, native
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        dx, grads = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device), as_rows(grad, ctx.order)
        if ctx.native:
            require_kernels().swiglu_backward(*grads.shape, rows, rows.stride(0), grads, grads.stride(0), dx)
        else:
            for gate, up, dy, dgate, dup in split_rows(*rows.chunk(2, -1), grads, *dx.chunk(2, -1)):
                aten.silu_backward.grad_input(torch.mul(dy, up, out=dgate), gate, grad_input=dgate)
                aten.silu.out(gate, out=dup).mul_(dy)
        return from_rows(dx, ctx.shape, ctx.order), None


register(
    "swiglu",
    "swiglu",
    plain(swiglu_reference),
    kernels(lambda x: _SwiGLU.apply(x, True)),
    otherwise("PyTorch, in blocks of rows", lambda x: _SwiGLU.apply(x, False)),
    sample=lambda one: (one,),
)
