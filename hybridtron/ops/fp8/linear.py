"""Linears whose products are of FP8 numbers, emulated: operands rounded to FP8, products and sums in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.fp8.formats import Quantized
from hybridtron.ops.fp8.state import FP8State, Operand
from hybridtron.ops.opaque import opaque


class Operands(NamedTuple):
    """The operands of a linear's products: y = x W^T, dx = dy W, dW = dy^T x."""

    x: Operand
    weight: Operand
    grad: Operand

    @classmethod
    def of(cls, state: FP8State, linear: str, own: slice, reduce: Callable[[Tensor], None]) -> Operands:
        """Make the three operands of a linear; see `Operand`."""
        return cls(*(Operand(state, linear, role, own, reduce) for role in cls._fields))


@opaque  # its scales change from call to call
def fp8_linear(x: Tensor, weight: Tensor, bias: Tensor | None, operands: Operands) -> Tensor:
    """Multiply [..., in] by a weight [out, in] in FP8 and add a bias: -> [..., out]."""
    rows = x.flatten(0, -2)
    y = fp8_grouped_linear(rows, weight.unsqueeze(0), [len(rows)], operands).unflatten(0, x.shape[:-1])
    return y if bias is None else y + bias


def fp8_grouped_linear(rows: Tensor, weight: Tensor, counts: Sequence[int], operands: Operands) -> Tensor:
    """Multiply each group of rows [n, in] by a weight [out, in] of its own in FP8; return [n, out].

    Each group and each weight has scales of its own. See `hybridtron.ops.moe.grouped_linear`.
    """
    return _FP8GroupedLinear.apply(rows, weight, tuple(counts), operands, torch.is_grad_enabled())


class _FP8GroupedLinear(torch.autograd.Function):
    """Keeps FP8 numbers for the backward pass: x by its rows, W by its columns, as their products need them."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, weight: Tensor, counts: tuple[int, ...], operands: Operands, is_recorded: bool
    ) -> Tensor:
        inputs = operands.x.quantize(rows.split(counts), is_recorded)
        weights = operands.weight.quantize(weight.unbind(), is_recorded)
        out = rows.new_empty(len(rows), weight.shape[1])
        for y, (x, _), (w, _) in zip(out.split(counts), inputs, weights, strict=True):
            (left, scale), (right, other) = x.factors(), w.factors()
            y.copy_((left @ right.T).mul_(scale * other))
        kept = [over_rows for _, over_rows in (*inputs, *weights)]
        ctx.save_for_backward(*(tensor for each in kept for tensor in each[:2]))
        ctx.blocks = [each.block for each in kept]
        ctx.counts, ctx.operands, ctx.dtypes = counts, operands, (rows.dtype, weight.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        saved, count = ctx.saved_tensors, len(ctx.counts)
        kept = [Quantized(saved[2 * i], saved[2 * i + 1], block) for i, block in enumerate(ctx.blocks)]
        grads = ctx.operands.grad.quantize(grad.split(ctx.counts), True)
        drows, dweight = [], []
        for x, w, (over_columns, over_rows) in zip(kept[:count], kept[count:], grads, strict=True):
            (dy, scale), (right, other) = over_columns.factors(), w.factors()
            drows.append((dy @ right).mul_(scale * other).to(ctx.dtypes[0]))
            dy, scale = (dy, scale) if over_rows is over_columns else over_rows.factors()
            right, other = x.factors()
            dweight.append((dy.T @ right).mul_(scale * other).to(ctx.dtypes[1]))
        return torch.cat(drows), torch.stack(dweight), None, None, None
