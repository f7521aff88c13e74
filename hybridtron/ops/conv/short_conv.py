"""Short causal depthwise convolution along the sequence, as before Mamba's scan (Gu & Dao 2023, arXiv 2312.00752)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.conv.vendor import CAUSAL_CONV1D
from hybridtron.ops.cuts import runs
from hybridtron.ops.device import device_type
from hybridtron.ops.dispatch import Implementation, otherwise, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype, under_transforms
from hybridtron.ops.elementwise.row_blocks import block_length, enough
from hybridtron.ops.memory_layout import channels_contiguous
from hybridtron.ops.native.library import kernels_for, require_kernels
from hybridtron.ops.triton import short_conv as triton_short_conv
from hybridtron.ops.triton.launch import triton_kernels

aten = torch.ops.aten

_MOST_TAPS = 32  # MOST_CONV_TAPS of short_conv.c
_TILE_CHANNELS = 768  # at most; long rows copy fast, and a tile still holds enough tokens to make k - 1 of them cheap


def short_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Compute y_t = activation(bias + sum_j weight[:, j] * x_{t - k + 1 + j}) by channel, with zeros before t = 0.

    x [b, s, c], weight [c, k], bias [c]; returns [b, s, c] laid out in memory as x is.
    """
    return select("short_conv", x, weight, bias, activation)(x, weight, bias, activation)


def gated_short_conv(before: Tensor, x: Tensor, after: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute after * short_conv(before * x): a short convolution between two gates, all [b, s, c]."""
    return select("gated_short_conv", before, x, after, weight, bias)(before, x, after, weight, bias)


def composed_gated_short_conv(
    before: Tensor, x: Tensor, after: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """Compute `gated_short_conv` by products and `short_conv`."""
    return after * short_conv(before * x, weight, bias)


def short_conv_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Compute `short_conv` by its formula: one shifted multiply-add per tap."""
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
    """Compute one token of `short_conv`: x [b, c], cache [b, k - 1, c] of the inputs before it (zeros at the start).

    Returns y [b, c] and the cache for the next token.
    """
    window = torch.cat([cache, x.unsqueeze(1)], 1)  # [b, k, c]
    dtype = accumulation_dtype(x)
    y = (window.to(dtype) * weight.t().to(dtype)).sum(1)
    if bias is not None:
        y = y + bias.to(dtype)
    return (F.silu(y) if activation else y).to(x.dtype), window[:, 1:]


def short_conv_prefill(
    cache: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> tuple[Tensor, Tensor]:
    """Compute `short_conv` of x [b, s, c] after the inputs in cache [b, k - 1, c]; returns y and the cache."""
    inputs, before = torch.cat([cache, x], 1), cache.shape[1]
    return short_conv(inputs, weight, bias, activation)[:, before:], inputs[:, x.shape[1] :].clone()


class _ShortConv(torch.autograd.Function):
    """Works tile by tile on copies that lie together in cache, and keeps its inputs alone for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Literal["silu"] | None) -> Tensor:
        out = torch.empty_like(x)
        for channels, taps, start in _channel_runs(weight, bias, accumulation_dtype(x)):
            for sequence, tokens in _token_runs(x, channels):
                y = _correlate(_load(x[sequence, :, channels], tokens.start - len(taps) + 1, tokens.stop), taps, start)
                out[sequence, tokens, channels] = F.silu(y, inplace=True) if activation else y
        ctx.save_for_backward(x, weight, bias)
        ctx.activation = activation
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, weight, bias = ctx.saved_tensors
        dx, dtype = torch.empty_like(x), accumulation_dtype(x)
        dweight = torch.zeros(weight.shape[::-1], dtype=dtype, device=x.device)  # [k, c]
        dbias = torch.zeros(weight.shape[0], dtype=dtype, device=x.device)
        for channels, taps, start in _channel_runs(weight, bias, dtype):
            for sequence, tokens in _token_runs(x, channels):
                # An input reaches k - 1 tokens further, so the gradients of those outputs are computed here as well.
                last = tokens.stop + len(taps) - 1
                inputs = _load(x[sequence, :, channels], tokens.start - len(taps) + 1, last)
                dy = _load(grad[sequence, :, channels], tokens.start, last)
                if ctx.activation:
                    aten.silu_backward.grad_input(dy, _correlate(inputs, taps, start), grad_input=dy)
                dx[sequence, tokens, channels] = _correlate(dy, taps[::-1], None)
                own = dy[: tokens.stop - tokens.start]
                for tap in range(len(taps)):
                    dweight[tap, channels] += (inputs[tap : tap + len(own)] * own).sum(0)
                if bias is not None:
                    dbias[channels] += own.sum(0)
        return dx, dweight.t().to(weight.dtype), None if bias is None else dbias.to(bias.dtype), None


class _NativeShortConv(torch.autograd.Function):
    """Keeps its inputs alone for backward, as `_ShortConv` does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, activation: Literal["silu"] | None) -> Tensor:
        x = channels_contiguous(x)
        out, taps = torch.empty_like(x), weight.t().contiguous()
        ctx.sizes = (*x.shape, weight.shape[1], int(activation is not None))
        start = x.new_zeros(x.shape[-1]) if bias is None else bias.contiguous()
        require_kernels().short_conv_forward(*ctx.sizes, x, *x.stride()[:2], taps, start, out, *out.stride()[:2])
        ctx.save_for_backward(x, taps, start)
        ctx.has_bias = bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        x, taps, start = ctx.saved_tensors
        grad = channels_contiguous(grad)
        dx, inner = torch.empty_like(x), x.new_empty(len(x) * ctx.sizes[-1], *x.shape[1:])
        dweight, dbias = x.new_empty(len(x), *taps.shape), x.new_empty(len(x), x.shape[-1])
        require_kernels().short_conv_backward(
            *ctx.sizes, x, *x.stride()[:2], taps, taps.flip(0), start, grad, *grad.stride()[:2], inner,
            dx, *dx.stride()[:2], dweight, dbias,
        )  # fmt: skip
        return dx, dweight.sum(0).t(), dbias.sum(0) if ctx.has_bias else None, None


def _channel_runs(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Iterator[tuple[slice, list[Tensor], Tensor | None]]:
    """Yield runs of channels, each with its k contiguous taps and its bias."""
    width = len(weight)
    for channels in runs(width, -(-width // -(-width // _TILE_CHANNELS))):
        taps = weight[channels].to(dtype).t().contiguous().unbind()
        yield channels, list(taps), None if bias is None else bias[channels].to(dtype)


def _token_runs(x: Tensor, channels: slice) -> Iterator[tuple[int, slice]]:
    """Yield each sequence of x [b, s, c] in runs of tokens that, with these channels, make a tile."""
    for sequence in range(x.shape[0]):
        for tokens in enough(runs(x.shape[1], block_length(channels.stop - channels.start, x.device)), x):
            yield sequence, tokens


def _load(x: Tensor, first: int, last: int) -> Tensor:
    """Return tokens first..last-1 of x [s, c] as contiguous rows, zeros where the sequence has no token."""
    seq_len, width = x.shape
    rows = torch.empty(last - first, width, dtype=accumulation_dtype(x), device=x.device)
    before, after = max(0, -first), min(last, seq_len) - first
    if before:
        rows[:before] = 0
    if after < len(rows):
        rows[after:] = 0
    rows[before:after] = x[max(0, first) : last]
    return rows


def _correlate(rows: Tensor, taps: list[Tensor], start: Tensor | None) -> Tensor:
    """Compute y_t = start + sum_j taps[j] * rows_{t + j} for rows [length + k - 1, c]; returns [length, c]."""
    length = len(rows) - len(taps) + 1
    y = rows[:length] * taps[0] if start is None else torch.addcmul(start, rows[:length], taps[0])
    for offset, tap in enumerate(taps[1:], 1):
        y.addcmul_(rows[offset : offset + length], tap)
    return y


def _kernels_fit(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> bool:
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return weight.shape[1] <= _MOST_TAPS and kernels_for(*tensors) is not None


register(
    "short_conv",
    "short convolution",
    CAUSAL_CONV1D,
    triton_kernels(
        triton_short_conv.short_conv,
        f"at most {triton_short_conv.MAX_TAPS} taps, or {triton_short_conv.MAX_SILU_TAPS} before SiLU",
        lambda x, weight, bias, activation: (
            weight.shape[1] <= (triton_short_conv.MAX_SILU_TAPS if activation else triton_short_conv.MAX_TAPS)
        ),
    ),
    Implementation(
        "PyTorch, shifted multiply-adds",
        "under a torch.func transform or on CUDA",
        lambda x, *_: under_transforms() or device_type(x.device) == "cuda",
        short_conv_reference,
        compiled=True,
    ),
    Implementation("C kernels", f"float32 on a CPU, at most {_MOST_TAPS} taps", _kernels_fit, _NativeShortConv.apply),
    otherwise("PyTorch, in tiles", _ShortConv.apply),
    sample=lambda one: (one.new_ones(1, 1, 8), one.new_ones(8, 4), None, None),
)
register(
    "gated_short_conv",
    "short convolution between gates",
    triton_kernels(
        triton_short_conv.gated_short_conv,
        f"gates of the dtype of x, at most {triton_short_conv.MAX_TAPS} taps",
        lambda before, x, after, weight, bias: (
            before.dtype == x.dtype == after.dtype and weight.shape[1] <= triton_short_conv.MAX_TAPS
        ),
    ),
    otherwise("short_conv and products", composed_gated_short_conv, compiled=True),
    sample=lambda one: (one, one, one, one, None),
)
