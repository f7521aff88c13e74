"""SwiGLU and the squared ReLU by Triton kernels: one pass over memory in each direction."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.row_blocks import as_rows, from_rows, row_order
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

_TILE_ELEMENTS = 2048  # two loads of 16 bytes by each of 128 threads, in bfloat16
_TILE_WIDTH = 1024


class _Form(NamedTuple):
    """An activation of `inputs` runs of channels, and its kernels."""

    inputs: int
    forward: str
    backward: str


_SWIGLU = _Form(2, "activations:swiglu_forward", "activations:swiglu_backward")
_SQUARED_RELU = _Form(1, "activations:squared_relu_forward", "activations:squared_relu_backward")


def swiglu(x: Tensor) -> Tensor:
    """Compute silu(gate) * up of x [..., 2f], gates first; returns [..., f]."""
    return _Activation.apply(x, _SWIGLU)


def relu2(x: Tensor) -> Tensor:
    """Compute relu(x)^2."""
    return _Activation.apply(x, _SQUARED_RELU)


class _Activation(torch.autograd.Function):
    """Keeps its input alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, form: _Form) -> Tensor:
        order = row_order(x)
        rows = as_rows(x, order)
        out = torch.empty(len(rows), x.shape[-1] // form.inputs, dtype=x.dtype, device=x.device)
        grid, tile = _tiles(*out.shape)
        launch(form.forward, grid, rows, out, *out.shape, rows.stride(0), **tile)
        ctx.save_for_backward(rows)
        ctx.shape, ctx.order, ctx.form = x.shape, order, form
        return from_rows(out, x.shape, order)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (rows,), g = ctx.saved_tensors, as_rows(grad, ctx.order)
        dx = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        grid, tile = _tiles(*g.shape)
        launch(ctx.form.backward, grid, rows, g, dx, *g.shape, rows.stride(0), g.stride(0), **tile)
        return from_rows(dx, ctx.shape, ctx.order), None


def _tiles(rows: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid, and the block sizes of a program."""
    across = min(_TILE_WIDTH, power_of_two(width))
    down = max(1, _TILE_ELEMENTS // across)
    tile = {"BLOCK_ROWS": down, "BLOCK_WIDTH": across, "num_warps": 4}
    return (ceil_div(rows, down) * ceil_div(width, across),), tile
