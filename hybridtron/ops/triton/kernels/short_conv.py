"""Triton kernels of the short causal convolution, with SiLU or between two gates: after * conv(before * x).

A program works on a block of tokens and channels of one sequence. Channels are contiguous; strides are given as
(sequence, token). Shifted inputs are loaded once for every tap, from the second on out of the cache.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(tensor, token, channel, stride, seq_len, channels):
    """Load tokens and channels of one sequence as float32, zeros outside of it."""
    inside = ((token >= 0) & (token < seq_len))[:, None] & (channel < channels)[None, :]
    return tl.load(tensor + token[:, None] * stride + channel[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _load_tap(weight, tap, channel, channels, TAPS: tl.constexpr):
    return tl.load(weight + channel * TAPS + tap, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _load_input(x, before, token, channel, x_stride, before_stride, seq_len, channels, GATED: tl.constexpr):
    value = _load(x, token, channel, x_stride, seq_len, channels)
    if GATED:
        value = value * _load(before, token, channel, before_stride, seq_len, channels)
    return value


@triton.jit
def _convolve(
    x, before, weight, bias, token, channel, x_stride, before_stride, seq_len, channels, TAPS: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Return the convolution, before its activation, at these tokens and channels."""
    total = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), dtype=tl.float32)
    if BIAS:
        total += tl.load(bias + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]
    for tap in tl.static_range(TAPS):
        source = token + (tap - TAPS + 1)
        value = _load_input(x, before, source, channel, x_stride, before_stride, seq_len, channels, GATED)
        total += value * _load_tap(weight, tap, channel, channels, TAPS)
    return total


@triton.jit
def short_conv_forward(
    x, before, after, weight, bias, out, seq_len, channels, x_batch, x_stride, before_batch, before_stride, after_batch,
    after_stride, out_batch, out_stride, TAPS: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr,
    SILU: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write out, the convolution with its activation or gates."""
    sequence = tl.program_id(2).to(tl.int64)
    token = tl.program_id(0).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    x += sequence * x_batch
    before += sequence * before_batch
    y = _convolve(
        x, before, weight, bias, token, channel, x_stride, before_stride, seq_len, channels, TAPS, GATED, BIAS,
        BLOCK_TOKENS, BLOCK_CHANNELS,
    )  # fmt: skip
    if SILU:
        y = y * tl.sigmoid(y)
    if GATED:
        y = y * _load(after + sequence * after_batch, token, channel, after_stride, seq_len, channels)
    inside = (token < seq_len)[:, None] & (channel < channels)[None, :]
    target = out + sequence * out_batch + token[:, None] * out_stride + channel[None, :]
    tl.store(target, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def short_conv_backward(
    x, before, after, weight, bias, grad, dx, dbefore, dafter, sums, seq_len, channels, x_batch, x_stride, before_batch,
    before_stride, after_batch, after_stride, grad_batch, grad_stride, dx_batch, dx_stride, TAPS: tl.constexpr,
    GATED: tl.constexpr, BIAS: tl.constexpr, SILU: tl.constexpr, BLOCKS: tl.constexpr, BLOCK_TAPS: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Write dx, and dbefore and dafter laid out as dx; and the gradients of taps and bias in `sums`
    [sequences, programs, TAPS + 1, channels], which each program adds up over BLOCKS blocks of tokens."""
    sequence = tl.program_id(2).to(tl.int64)
    channel = tl.program_id(1) * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    taps = tl.arange(0, BLOCK_TAPS)
    x += sequence * x_batch
    before += sequence * before_batch
    after += sequence * after_batch
    grad += sequence * grad_batch
    dweight = tl.zeros((BLOCK_TAPS, BLOCK_CHANNELS), dtype=tl.float32)
    for block in range(BLOCKS):
        first = (tl.program_id(0) * BLOCKS + block) * BLOCK_TOKENS
        token = first + tl.arange(0, BLOCK_TOKENS).to(tl.int64)
        inside = (token < seq_len)[:, None] & (channel < channels)[None, :]
        target = sequence * dx_batch + token[:, None] * dx_stride + channel[None, :]
        du = tl.zeros((BLOCK_TOKENS, BLOCK_CHANNELS), dtype=tl.float32)
        for shift in tl.static_range(TAPS):  # an input reaches the outputs of TAPS - 1 later tokens
            later = token + shift
            g = _load(grad, later, channel, grad_stride, seq_len, channels)
            if SILU or (GATED and shift == 0):
                y = _convolve(
                    x, before, weight, bias, later, channel, x_stride, before_stride, seq_len, channels, TAPS, GATED,
                    BIAS, BLOCK_TOKENS, BLOCK_CHANNELS,
                )  # fmt: skip
                if GATED and shift == 0:
                    activated = y * tl.sigmoid(y) if SILU else y
                    tl.store(dafter + target, (g * activated).to(dafter.dtype.element_ty), mask=inside)
            if GATED:
                g = g * _load(after, later, channel, after_stride, seq_len, channels)
            if SILU:
                share = tl.sigmoid(y)
                g = g * share * (1.0 + y * (1.0 - share))
            du += g * _load_tap(weight, TAPS - 1 - shift, channel, channels, TAPS)
            if shift == 0:
                dweight += tl.where(taps[:, None] == TAPS, tl.sum(g, axis=0)[None, :], 0.0)
                for tap in tl.static_range(TAPS):
                    source = token + (tap - TAPS + 1)
                    value = _load_input(x, before, source, channel, x_stride, before_stride, seq_len, channels, GATED)
                    dweight += tl.where(taps[:, None] == tap, tl.sum(g * value, axis=0)[None, :], 0.0)
        if GATED:
            value = _load(x, token, channel, x_stride, seq_len, channels)
            tl.store(dbefore + target, (du * value).to(dbefore.dtype.element_ty), mask=inside)
            du = du * _load(before, token, channel, before_stride, seq_len, channels)
        tl.store(dx + target, du.to(dx.dtype.element_ty), mask=inside)
    program = sequence * tl.num_programs(0) + tl.program_id(0)
    target = sums + (program * (TAPS + 1) + taps[:, None]) * channels + channel[None, :]
    tl.store(target, dweight, mask=(taps <= TAPS)[:, None] & (channel < channels)[None, :])
