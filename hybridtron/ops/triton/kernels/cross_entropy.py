"""Triton kernels of the cross entropy over blocks of the vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def add_block(
    logits, targets, peak, total, target_logit, stride, first, columns, BLOCK_COLUMNS: tl.constexpr
):  # fmt: skip
    """Add a block of logits [rows, columns], the vocabulary from `first` on, to each row's largest logit `peak`, the
    sum `total` of exp(logit - peak), and the logit of its target. A program works on a row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_COLUMNS)
    largest = tl.load(peak + row)
    weight = tl.load(total + row)
    for start in range(0, columns, BLOCK_COLUMNS):
        inside = start + column < columns
        value = tl.load(logits + row * stride + start + column, mask=inside, other=float("-inf")).to(tl.float32)
        above = tl.maximum(largest, tl.max(value, axis=0))
        weight = weight * tl.exp(largest - above) + tl.sum(tl.exp(value - above), axis=0)
        largest = above
    tl.store(peak + row, largest)
    tl.store(total + row, weight)
    target = tl.load(targets + row) - first
    own = (target >= 0) & (target < columns)
    value = tl.load(logits + row * stride + target, mask=own, other=0.0).to(tl.float32)
    tl.store(target_logit + row, value, mask=own)


@triton.jit
def write_gradient(
    logits, targets, log_z, on_all, on_target, gradient, stride, gradient_stride, first, columns,
    BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    """Write the gradient by a block of logits [rows, columns], which may lie in their place: on_all times the
    probabilities, minus on_target at the target."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    inside = column < columns
    value = tl.load(logits + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    value = tl.exp(value - tl.load(log_z + row)) * tl.load(on_all + row)
    target = tl.load(targets + row) - first
    value = tl.where(column == target, value - tl.load(on_target + row), value)
    tl.store(gradient + row * gradient_stride + column, value.to(gradient.dtype.element_ty), mask=inside)
