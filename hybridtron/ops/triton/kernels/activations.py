"""Triton kernels of SwiGLU and the squared ReLU, forward and backward.

A program works on a tile of rows and columns. Programs count along a row first, so that neighbours in time are
neighbours in memory; offsets are of 64 bits. Columns are contiguous; of x and the gradient rows are strided.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tile(rows, width, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Return the rows [BLOCK_ROWS, 1] and columns [1, BLOCK_WIDTH] of this program, and which are inside."""
    across = tl.cdiv(width, BLOCK_WIDTH)
    row = (tl.program_id(0) // across).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = (tl.program_id(0) % across) * BLOCK_WIDTH + tl.arange(0, BLOCK_WIDTH)
    return row[:, None], column[None, :], (row < rows)[:, None] & (column < width)[None, :]


@triton.jit
def swiglu_forward(x, out, rows, width, x_stride, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Write out [rows, width] of x [rows, 2 width], gates first."""
    row, column, inside = _tile(rows, width, BLOCK_ROWS, BLOCK_WIDTH)
    source = x + row * x_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    result = gate * tl.sigmoid(gate) * up
    tl.store(out + row * width + column, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_backward(
    x, grad, dx, rows, width, x_stride, grad_stride, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Write dx [rows, 2 width] of x and the gradient [rows, width]."""
    row, column, inside = _tile(rows, width, BLOCK_ROWS, BLOCK_WIDTH)
    source = x + row * x_stride + column
    gate = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(source + width, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    slope = share * (1.0 + gate * (1.0 - share))
    target = dx + row * (2 * width) + column
    tl.store(target, (g * up * slope).to(dx.dtype.element_ty), mask=inside)
    tl.store(target + width, (g * gate * share).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def squared_relu_forward(x, out, rows, width, x_stride, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Write out [rows, width] of x [rows, width]."""
    row, column, inside = _tile(rows, width, BLOCK_ROWS, BLOCK_WIDTH)
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    positive = tl.where(value < 0.0, 0.0, value)  # not a maximum, which would drop NaN
    tl.store(out + row * width + column, (positive * positive).to(out.dtype.element_ty), mask=inside)


@triton.jit
def squared_relu_backward(
    x, grad, dx, rows, width, x_stride, grad_stride, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr
):
    """Write dx [rows, width] of x and the gradient, both [rows, width]."""
    row, column, inside = _tile(rows, width, BLOCK_ROWS, BLOCK_WIDTH)
    value = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    positive = tl.where(value < 0.0, 0.0, value)
    tl.store(dx + row * width + column, (2.0 * positive * g).to(dx.dtype.element_ty), mask=inside)
