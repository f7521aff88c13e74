"""Triton kernels of the RMS norm over groups of channels, with a gate before or after it or none.

A program works on blocks of rows of one group. GATE is 0 (none), 1 (norm of x silu(z)) or 2 (norm of x, times silu(z)).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def norm_forward(
    x, z, weight, out, inverse_rms, rows, x_stride, z_stride, weight_stride, eps, GROUPS: tl.constexpr,
    WIDTH: tl.constexpr, GATE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Write out [rows, GROUPS * WIDTH] and inverse_rms [rows, GROUPS] of x and z; rows of both are strided."""
    group = tl.program_id(1)
    row = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    column = tl.arange(0, BLOCK_WIDTH)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    channel = group * WIDTH + column
    value = tl.load(x + row[:, None] * x_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(weight + group * weight_stride + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    if GATE > 0:
        gate = tl.load(z + row[:, None] * z_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        activated = gate * tl.sigmoid(gate)
    if GATE == 1:
        value = value * activated
    inverse = 1.0 / tl.sqrt(tl.sum(value * value, axis=1) / WIDTH + eps)
    result = value * inverse[:, None] * scale[None, :]
    if GATE == 2:
        result = result * activated
    target = out + row[:, None] * (GROUPS * WIDTH) + channel[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=inside)
    tl.store(inverse_rms + row * GROUPS + group, inverse, mask=row < rows)


@triton.jit
def norm_backward(
    x, z, weight, inverse_rms, grad, dx, dz, dweight, rows, x_stride, z_stride, weight_stride, grad_stride,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, GATE: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
):  # fmt: skip
    """Write dx and dz [rows, GROUPS * WIDTH], and dweight [programs, GROUPS, WIDTH], the sums of each program."""
    group = tl.program_id(1)
    column = tl.arange(0, BLOCK_WIDTH)
    channel = group * WIDTH + column
    scale = tl.load(weight + group * weight_stride + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    sums = tl.zeros((BLOCK_ROWS, BLOCK_WIDTH), dtype=tl.float32)
    for first in range(tl.program_id(0) * BLOCK_ROWS, rows, tl.num_programs(0) * BLOCK_ROWS):
        row = first + tl.arange(0, BLOCK_ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        value = tl.load(x + row[:, None] * x_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        g = tl.load(grad + row[:, None] * grad_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_rms + row * GROUPS + group, mask=row < rows, other=0.0)[:, None]
        normed = value * inverse
        if GATE > 0:
            gate = tl.load(z + row[:, None] * z_stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)
            share = tl.sigmoid(gate)
            activated = gate * share
            slope = share * (1.0 + gate * (1.0 - share))
        if GATE == 1:
            normed = normed * activated
        if GATE == 2:
            dgate = g * normed * scale[None, :] * slope
            g = g * activated
        sums += g * normed
        g = g * scale[None, :]
        along = tl.sum(g * normed, axis=1) / WIDTH
        dvalue = (g - normed * along[:, None]) * inverse
        if GATE == 1:
            dgate = dvalue * value * slope
            dvalue = dvalue * activated
        target = row[:, None] * (GROUPS * WIDTH) + channel[None, :]
        tl.store(dx + target, dvalue.to(dx.dtype.element_ty), mask=inside)
        if GATE > 0:
            tl.store(dz + target, dgate.to(dz.dtype.element_ty), mask=inside)
    place = (tl.program_id(0) * GROUPS + group) * WIDTH + column
    tl.store(dweight + place, tl.sum(sums, axis=0), mask=column < WIDTH)
