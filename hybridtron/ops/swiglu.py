"""SwiGLU (Shazeer 2020, arXiv 2002.05202): a linear layer gated by the SiLU of another."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.blocks import as_rows, blocks, from_rows, row_order
from hybridtron.ops.precision import under_transforms

aten = torch.ops.aten


def swiglu(x: Tensor) -> Tensor:
    """silu(gate) * up for x [..., 2f] whose first half is the gate and second half is up; returns [..., f]."""
    return swiglu_reference(x) if under_transforms() else _SwiGLU.apply(x)


def swiglu_reference(x: Tensor) -> Tensor:
    """`swiglu` by its formula."""
    gate, up = x.chunk(2, -1)
    return F.silu(gate) * up


class _SwiGLU(torch.autograd.Function):
    """Keeps its input alone: the activation is cheaper to compute again than to write and read back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        order = row_order(x)
        rows = as_rows(x, order)
        out = torch.empty(len(rows), x.shape[-1] // 2, dtype=x.dtype, device=x.device)
        for block in blocks(*rows.shape, x.device):
            gate, up = rows[block].chunk(2, -1)
            aten.silu.out(gate, out=out[block]).mul_(up)
        ctx.save_for_backward(rows)
        ctx.shape, ctx.order = x.shape, order
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (rows,) = ctx.saved_tensors
        grad_rows, dx = as_rows(grad, ctx.order), torch.empty_like(rows)
        for block in blocks(*rows.shape, rows.device):
            gate, up = rows[block].chunk(2, -1)
            dgate, dup = dx[block].chunk(2, -1)
            aten.silu.out(gate, out=dup).mul_(grad_rows[block])
            dgate.copy_(aten.silu_backward(grad_rows[block] * up, gate))
        return from_rows(dx, ctx.shape, ctx.order)
