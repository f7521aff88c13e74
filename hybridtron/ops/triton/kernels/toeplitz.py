"""Triton kernels of the causal convolution with filters of some hundred taps, as products of Toeplitz blocks.

A block of tokens of the output is the sum, over the blocks of tokens that its filter reaches, of a Toeplitz matrix of
taps [tokens, tokens] times inputs [tokens, columns]. Columns are the channels that share the filter, of all sequences.
"""

from __future__ import annotations

import triton
import triton.language as tl

from hybridtron.ops.triton.kernels.products import dot


@triton.jit
def _columns(group, batch, first, WIDTH: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):
    """Return the sequence and the channel of a block of a group's columns, and which there are."""
    column = first + tl.arange(0, BLOCK_COLUMNS)
    sequence = (column // WIDTH).to(tl.int64)
    return sequence, group * WIDTH + column % WIDTH, sequence < batch


@triton.jit
def _load(x, token, offsets, present, stride, seq_len):
    """Load tokens [n] at the offsets [m] of columns, zeros outside of the sequence: [n, m]."""
    inside = ((token >= 0) & (token < seq_len))[:, None] & present[None, :]
    return tl.load(x + token[:, None] * stride + offsets[None, :], mask=inside, other=0.0)


@triton.jit
def convolve(
    u, h, y, seq_len, taps, batch, u_batch, u_stride, y_batch, y_stride, WIDTH: tl.constexpr, REVERSE: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Write y_t = sum_j h[j] u_{t - j}, or with REVERSE the sum of h[j] u_{t + j}; h [groups, taps] in float32."""
    group = tl.program_id(1)
    first = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS
    place = tl.arange(0, BLOCK_TOKENS)
    sequence, channel, present = _columns(group, batch, tl.program_id(2) * BLOCK_COLUMNS, WIDTH, BLOCK_COLUMNS)
    offsets = sequence * u_batch + channel
    total = tl.zeros((BLOCK_TOKENS, BLOCK_COLUMNS), dtype=tl.float32)
    for distance in range(0, taps + BLOCK_TOKENS - 1, BLOCK_TOKENS):
        if REVERSE:
            source = first + distance + place
            lag = distance + place[None, :] - place[:, None]
        else:
            source = first - distance + place
            lag = distance + place[:, None] - place[None, :]
        matrix = tl.load(h + group * taps + lag, mask=(lag >= 0) & (lag < taps), other=0.0)
        values = _load(u, source, offsets, present, u_stride, seq_len)
        total += dot(matrix.to(values.dtype), values, WIDEN)
    token = first + place
    target = y + token[:, None] * y_stride + (sequence * y_batch + channel)[None, :]
    tl.store(target, total.to(y.dtype.element_ty), mask=(token < seq_len)[:, None] & present[None, :])


@triton.jit
def correlate(
    u, grad, products, seq_len, batch, u_batch, u_stride, grad_batch, grad_stride, WIDTH: tl.constexpr,
    COLUMN_BLOCKS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """Write products [splits, groups, distances, BLOCK_TOKENS, BLOCK_TOKENS]: entry (i, j) is the sum, over blocks of
    tokens and columns, of the gradient at token i times the input at token j of the block at that distance before."""
    distance, group, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    place = tl.arange(0, BLOCK_TOKENS)
    total = tl.zeros((BLOCK_TOKENS, BLOCK_TOKENS), dtype=tl.float32)
    step = tl.num_programs(2) * BLOCK_TOKENS
    for first in range((distance + split) * BLOCK_TOKENS, seq_len, step):
        token = first + place.to(tl.int64)
        for block in range(COLUMN_BLOCKS):
            sequence, channel, present = _columns(group, batch, block * BLOCK_COLUMNS, WIDTH, BLOCK_COLUMNS)
            g = _load(grad, token, sequence * grad_batch + channel, present, grad_stride, seq_len)
            source = token - distance * BLOCK_TOKENS
            values = _load(u, source, sequence * u_batch + channel, present, u_stride, seq_len)
            total += dot(g, tl.trans(values), WIDEN)
    matrix = (split * tl.num_programs(1) + group) * tl.num_programs(0) + distance
    target = products + matrix.to(tl.int64) * BLOCK_TOKENS * BLOCK_TOKENS
    tl.store(target + place[:, None] * BLOCK_TOKENS + place[None, :], total)
