"""Triton kernel of the rotary position embedding.

A program rotates a block of tokens of one sequence in HEADS heads, for which it loads cos and sin once. Channels are
contiguous; strides are given as (sequence, token, head).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rotate(
    x, cos, sin, out, seq_len, heads, x_batch, x_stride, x_head, out_batch, out_stride, out_head, HALF: tl.constexpr,
    REST: tl.constexpr, BACK: tl.constexpr, HEADS: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_REST: tl.constexpr,
):  # fmt: skip
    """Write out, channel pairs (i, i + HALF) of x turned by the angles of cos and sin [seq_len, HALF], back where BACK;
    the REST channels after them are copied."""
    blocks = tl.cdiv(seq_len, BLOCK_TOKENS)
    sequence = (tl.program_id(0) // blocks).to(tl.int64)
    token = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    channel, rest = tl.arange(0, BLOCK_HALF), 2 * HALF + tl.arange(0, BLOCK_REST)
    inside = (token < seq_len)[:, None] & (channel < HALF)[None, :]
    place = token[:, None] * HALF + channel[None, :]
    c = tl.load(cos + place, mask=inside, other=0.0).to(tl.float32)
    s = tl.load(sin + place, mask=inside, other=0.0).to(tl.float32)
    if BACK:
        s = -s
    x += sequence * x_batch + token[:, None] * x_stride
    out += sequence * out_batch + token[:, None] * out_stride
    for step in tl.static_range(HEADS):
        head = tl.program_id(1).to(tl.int64) * HEADS + step
        limit = tl.where(head < heads, seq_len, 0)
        here = (token < limit)[:, None] & (channel < HALF)[None, :]
        source, target = x + head * x_head + channel[None, :], out + head * out_head + channel[None, :]
        first = tl.load(source, mask=here, other=0.0).to(tl.float32)
        second = tl.load(source + HALF, mask=here, other=0.0).to(tl.float32)
        tl.store(target, (first * c - second * s).to(out.dtype.element_ty), mask=here)
        tl.store(target + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=here)
        if REST > 0:
            here = (token < limit)[:, None] & (rest < 2 * HALF + REST)[None, :]
            passed = tl.load(x + head * x_head + rest[None, :], mask=here, other=0.0)
            tl.store(out + head * out_head + rest[None, :], passed, mask=here)
