"""Short causal depthwise convolution along the sequence, as Mamba puts before its scan (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.blocks import blocks, runs
from hybridtron.ops.precision import accumulation_dtype, under_transforms

aten = torch.ops.aten

_TILE_CHANNELS = 512


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """y_t = activation(bias + sum_j weight[:, j] * x_{t - k + 1 + j}), channel by channel, with zeros before the sequence.

    x [b, s, c], weight [c, k], bias [c]; returns [b, s, c] laid out in memory as x is.
    """
    if under_transforms() or x.is_cuda:
        return short_conv_reference(x, weight, bias, activation)
    return _ShortConv.apply(x, weight, bias, activation)


def short_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """`short_conv` by its formula: one shifted multiply-add per tap."""
    dtype, (seq_len, taps) = accumulation_dtype(x), (x.shape[1], weight.shape[1])
    padded, weight = F.pad(x.to(dtype), (0, 0, taps - 1, 0)), weight.to(dtype)
    y = padded[:, :seq_len] * weight[:, 0]
    for tap in range(1, taps):
        y = torch.addcmul(y, padded[:, tap : tap + seq_len], weight[:, tap])
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation else y).to(x.dtype)


def short_conv_step(
    cache: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> tuple[Tensor, Tensor]:
    """One token of `short_conv`: x [b, c], cache [b, k - 1, c] of the inputs before it (zeros at the start).

    Returns y [b, c] and the cache for the next token.
    """
    window = torch.cat([cache, x.unsqueeze(1)], 1)  # [b, k, c]
    return short_conv_reference(window, weight, bias, activation)[:, -1], window[:, 1:]


class _ShortConv(torch.autograd.Function):
    """Works tile by tile on copies that lie together in cache, and keeps its inputs alone for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Literal["silu"] | None) -> Tensor:
        out = torch.empty_like(x)
        for sequence, tokens, channels in _tiles(x):
            taps, start = _taps(x, weight, bias, channels)
            y = _correlate(_load(x[sequence, :, channels], tokens.start - len(taps) + 1, tokens.stop), taps, start)
            if activation:
                F.silu(y, inplace=True)
            out[sequence, tokens, channels] = y
        ctx.save_for_backward(x, weight, bias)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, bias = ctx.saved_tensors
        dx = torch.empty_like(x)
        dweight = torch.zeros(weight.shape[::-1], dtype=accumulation_dtype(x), device=x.device)  # [k, c]
        dbias = torch.zeros_like(dweight[0])
        for sequence, tokens, channels in _tiles(x):
            taps, start = _taps(x, weight, bias, channels)
            # An input reaches k - 1 tokens further, so the gradients of those outputs are computed here as well.
            last = tokens.stop + len(taps) - 1
            inputs = _load(x[sequence, :, channels], tokens.start - len(taps) + 1, last)
            dy = _load(grad[sequence, :, channels], tokens.start, last)
            if ctx.activation:
                dy = aten.silu_backward(dy, _correlate(inputs, taps, start))
            dx[sequence, tokens, channels] = _correlate(dy, taps[::-1], None)
            own = dy[: tokens.stop - tokens.start]
            for tap in range(len(taps)):
                dweight[tap, channels] += (inputs[tap : tap + len(own)] * own).sum(0)
            dbias[channels] += own.sum(0)
        return dx, dweight.t().to(weight.dtype), None if bias is None else dbias.to(bias.dtype), None


def _tiles(x: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Cuts [b, s, c] into (one sequence, a run of tokens, a run of channels)."""
    batch, seq_len, width = x.shape
    for channels in runs(width, min(width, _TILE_CHANNELS)):
        for sequence in range(batch):
            for tokens in blocks(seq_len, channels.stop - channels.start, x.device):
                yield sequence, tokens, channels


def _taps(x: Tensor, weight: Tensor, bias: Tensor | None, channels: slice) -> tuple[list[Tensor], Tensor | None]:
    """The k taps of a run of channels, each contiguous, and its bias, in the dtype of the accumulation."""
    dtype = accumulation_dtype(x)
    return list(weight[channels].t().to(dtype).contiguous()), None if bias is None else bias[channels].to(dtype)


def _load(x: Tensor, first: int, last: int) -> Tensor:
    """Tokens first..last-1 of x [s, c] as contiguous rows, zeros where the sequence has no token."""
    seq_len, width = x.shape
    rows = torch.empty(last - first, width, dtype=accumulation_dtype(x), device=x.device)
    before, after = max(0, -first), max(0, last - seq_len)
    rows[:before] = 0
    rows[len(rows) - after :] = 0
    rows[before : len(rows) - after] = x[max(0, first) : min(last, seq_len)]
    return rows


def _correlate(rows: Tensor, taps: list[Tensor], start: Tensor | None) -> Tensor:
    """y_t = start + sum_j taps[j] * rows_{t + j} for rows [length + k - 1, c]; returns [length, c]."""
    length = len(rows) - len(taps) + 1
    y = rows[:length] * taps[0] if start is None else torch.addcmul(start, rows[:length], taps[0])
    for offset, tap in enumerate(taps[1:], 1):
        y.addcmul_(rows[offset : offset + length], tap)
    return y
