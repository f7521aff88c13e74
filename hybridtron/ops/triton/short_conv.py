"""The short causal convolution, with SiLU or between two gates, by Triton kernels.

Backward reads inputs and gradient once and keeps neither outputs nor their gradients: each program computes again the
few outputs after its tokens that their inputs reach.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.memory_layout import channels_contiguous, empty_laid_out_as
from hybridtron.ops.triton.launch import ceil_div, launch, power_of_two

MAX_TAPS = 32
MAX_SILU_TAPS = 8  # of which backward computes the square
_TILE_ELEMENTS, _TILE_CHANNELS = 2048, 128
_BACKWARD_TILE_ELEMENTS = 1024  # more would not fit the registers
_BACKWARD_BLOCKS = 8  # of tokens, over which a program adds up the gradient of the taps


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Compute y_t = activation(bias + sum_j weight[:, j] * x_{t - k + 1 + j}) by channel of x [b, s, c]."""
    return _ShortConv.apply(x, None, None, weight, bias, activation)


def gated_short_conv(before: Tensor, x: Tensor, after: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute after * short_conv(before * x), all [b, s, c]."""
    return _ShortConv.apply(x, before, after, weight, bias, None)


class _ShortConv(torch.autograd.Function):
    """Keeps its inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        activation: Literal["silu"] | None,
    ) -> Tensor:
        gated = before is not None
        x = channels_contiguous(x)
        before, after = (x if t is None else channels_contiguous(t) for t in (before, after))
        weight = weight.contiguous()
        batch, seq_len, channels = x.shape
        flags = {"TAPS": weight.shape[1], "GATED": gated, "BIAS": bias is not None, "SILU": activation == "silu"}
        tile, out = _tile(channels, _TILE_ELEMENTS), empty_laid_out_as(x, x.shape)
        grid = ceil_div(seq_len, tile["BLOCK_TOKENS"]), ceil_div(channels, tile["BLOCK_CHANNELS"]), batch
        launch(
            "short_conv:short_conv_forward", grid, x, before, after, weight, weight if bias is None else bias, out,
            seq_len, channels, *_strides(x, before, after, out), **flags, **tile,
        )  # fmt: skip
        ctx.save_for_backward(x, before, after, weight, bias)
        ctx.flags = flags
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, before, after, weight, bias = ctx.saved_tensors
        grad, flags = channels_contiguous(grad), ctx.flags
        (batch, seq_len, channels), taps = x.shape, flags["TAPS"]
        tile, dx = _tile(channels, _BACKWARD_TILE_ELEMENTS), empty_laid_out_as(x, x.shape)
        dbefore, dafter = (torch.empty_like(dx) if flags["GATED"] else dx for _ in range(2))
        token_blocks = ceil_div(seq_len, tile["BLOCK_TOKENS"])
        blocks = min(_BACKWARD_BLOCKS, token_blocks)
        programs = ceil_div(token_blocks, max(1, blocks))
        sums = torch.empty(batch, programs, taps + 1, channels, dtype=torch.float32, device=x.device)
        launch(
            "short_conv:short_conv_backward", (programs, ceil_div(channels, tile["BLOCK_CHANNELS"]), batch), x, before,
            after, weight, weight if bias is None else bias, grad, dx, dbefore, dafter, sums, seq_len, channels,
            *_strides(x, before, after, grad, dx), BLOCKS=blocks, BLOCK_TAPS=power_of_two(taps + 1), **flags, **tile,
        )  # fmt: skip
        of_taps = sums.sum((0, 1))
        gates = (dbefore, dafter) if flags["GATED"] else (None, None)
        dbias = None if bias is None else of_taps[taps].to(bias.dtype)
        return dx, *gates, of_taps[:taps].t().to(weight.dtype), dbias, None


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:2]]


def _tile(channels: int, elements: int) -> dict[str, int]:
    """Return the block sizes of a program that works on so many elements at a time."""
    width = min(_TILE_CHANNELS, power_of_two(channels))
    return {"BLOCK_TOKENS": min(64, elements // width), "BLOCK_CHANNELS": width, "num_warps": 4}
