"""Loads, stores and products that kernels of chunked scans share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(x, row, column, rows, columns, stride):
    """Return x[row, column] as float32, zeros outside of rows x columns; rows are `stride` elements apart."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_tile(x, row, column, rows, columns, stride, value):
    """Write value into x[row, column] inside of rows x columns."""
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(x + row[:, None] * stride + column[None, :], value.to(x.dtype.element_ty), mask=inside)


@triton.jit
def load_row(x, row, column, rows, columns, stride):
    """Return x[row, column] of one row as float32, zeros outside of rows x columns."""
    inside = column < tl.where(row < rows, columns, 0)
    return tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def load_values(x, row, rows, stride):
    """Return x[row] as float32, zeros outside; rows are `stride` elements apart."""
    return tl.load(x + row * stride, mask=row < rows, other=0.0).to(tl.float32)


@triton.jit
def products(
    x, y, row, rows, stride, N: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr
):
    """Return x y^T over N channels of the rows of a chunk."""
    acc = tl.zeros((CHUNK, CHUNK), dtype=tl.float32)
    for start in range(0, N, BLOCK):
        column = start + tl.arange(0, BLOCK)
        left = load_tile(x, row, column, rows, N, stride)
        right = load_tile(y, row, column, rows, N, stride)
        acc += tl.dot(left, tl.trans(right), input_precision=PRECISION)
    return acc
