"""Rotary position embedding by a Triton kernel: one pass over memory in each direction."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.row_blocks import row_order
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

_TILE_ELEMENTS = 1024  # of half the rotated channels, in float32 beside cos and sin
_REST_ELEMENTS = 8192  # of the channels that pass
_HEADS = 4  # that a program rotates by the same cos and sin


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + r) of x [b, s, h, d] by cos and sin [s, r]; the result lies [b, h, s, d] in memory.

    Channels from 2r on pass unchanged.
    """
    return _Rotary.apply(x, cos, sin)


class _Rotary(torch.autograd.Function):
    """Keeps cos and sin alone. The gradient lies in memory as x does, so that a norm before it reads it in place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.contiguous(), sin.contiguous()
        ctx.save_for_backward(cos, sin)
        ctx.order = row_order(x)
        return _rotate(x, cos, sin, [0, 2, 1, 3], back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, sin, ctx.order, back=True), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, order: list[int], back: bool) -> Tensor:
    """Return x rotated, or rotated back, with its axes lying in memory in this order."""
    x = x if x.stride(-1) == 1 else x.contiguous()
    (batch, seq_len, heads, channels), half = x.shape, cos.shape[-1]
    out = torch.empty([x.shape[axis] for axis in order], dtype=x.dtype, device=x.device)
    out = out.permute([order.index(axis) for axis in range(4)])  # [b, s, h, d]
    rest, each = channels - 2 * half, min(_HEADS, heads)
    widths = power_of_two(half), power_of_two(rest)
    tokens = max(1, min(64, _TILE_ELEMENTS // widths[0], _REST_ELEMENTS // widths[1]))
    launch(
        "rotary:rotate", (ceil_div(seq_len, tokens) * batch, ceil_div(heads, max(1, each))), x, cos, sin, out, seq_len,
        heads, *x.stride()[:3], *out.stride()[:3], HALF=half, REST=rest, BACK=back, HEADS=each, BLOCK_TOKENS=tokens,
        BLOCK_HALF=widths[0], BLOCK_REST=widths[1], num_warps=4,
    )  # fmt: skip
    return out
