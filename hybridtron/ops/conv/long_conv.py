"""Causal convolution along the sequence with filters of some taps or as long as the sequence itself.

Few taps are added up one by one, in float32 on a CPU by compiled kernels some hundred. Longer filters go through
Fourier transforms, whose cost per token grows with the logarithm of the filter's length: the sequence in segments of a
few filter lengths, each of which reaches into the next (overlap-add), or whole where the filter is as long as it.
Measured on one CPU core over 256 channels and 256 to 2048 tokens, transforms pass the taps at 20 taps without kernels,
and always the product with the filter's Toeplitz matrix in blocks; with kernels over 128 channels at about 256.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.conv.short_conv import short_conv
from hybridtron.ops.cuts import DIRECT_TAPS, fft_size, segment_length
from hybridtron.ops.dispatch import Implementation, otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import channels_contiguous
from hybridtron.ops.native.library import kernels_for, require_kernels
from hybridtron.ops.triton import toeplitz
from hybridtron.ops.triton.launch import triton_kernels

_NATIVE_TAPS = 256  # in the mean over tokens, beyond which transforms are faster
_NATIVE_TOKENS = 2048  # MOST_CONV_TOKENS of long_conv.c


def long_conv(u: Tensor, h: Tensor) -> Tensor:
    """Compute y_t = sum_{j <= t} h[j] u_{t - j} for each channel, with zeros before t = 0 and beyond the filter's end.

    u [b, s, c]; h [g, k] with g dividing c: c / g consecutive channels share a filter. Returns [b, s, c] in the dtype
    of u; computed in float32, or in float64 for float64 inputs.

    Up to 20 taps no output depends on a later token. Longer filters go through transforms, whose rounding carries a
    token into earlier outputs too: any y is then off by at most eps log2(4 s) |h| |u|, with eps of that dtype and the
    2-norms of its filter and of its channel over the s tokens.
    """
    h = h[:, : u.shape[1]].to(accumulation_dtype(u))
    return select("long_conv", u, h)(u, h)


def _add_taps(u: Tensor, h: Tensor) -> Tensor:
    return short_conv(u, h.flip(-1).repeat_interleave(u.shape[2] // len(h), 0))


def _convolve_segments(u: Tensor, h: Tensor) -> Tensor:
    seq_len = u.shape[1]
    grouped = u.to(h.dtype).unflatten(-1, (len(h), -1)).permute(0, 2, 3, 1)  # [b, g, d, s]
    length = segment_length(seq_len, h.shape[1])
    if length == seq_len:
        y = convolve(grouped, h, seq_len)
    else:
        reach = h.shape[1] - 1
        segments = F.pad(grouped, (0, -seq_len % length)).unflatten(-1, (-1, length))  # [b, g, d, n, l]
        whole = convolve(segments.flatten(2, 3), h, length + reach).unflatten(2, segments.shape[2:4])
        late = F.pad(whole[..., :-1, length:], (0, length - reach, 1, 0))  # from the segment before
        y = (whole[..., :length] + late).flatten(3)[..., :seq_len]
    return y.permute(0, 3, 1, 2).flatten(2).to(u.dtype)


def long_conv_reference(u: Tensor, h: Tensor) -> Tensor:
    """Compute `long_conv` by its formula, one shifted multiply-add per tap, in float64."""
    u, taps = u.double(), h.double().repeat_interleave(u.shape[2] // len(h), 0)  # [c, k]
    seq_len, y = u.shape[1], torch.zeros_like(u)
    for lag in range(min(seq_len, h.shape[1])):
        y = y + F.pad(u[:, : seq_len - lag], (0, 0, lag, 0)) * taps[:, lag]
    return y


def convolve(u: Tensor, h: Tensor, out: int) -> Tensor:
    """Compute the first `out` tokens of the convolution of u [b, g, m, s] with h [g, k], by Fourier transforms."""
    size = fft_size(u.shape[-1] + h.shape[-1] - 1)
    return select("convolve")(u, h, size, out)


def _plain_convolve(u: Tensor, h: Tensor, size: int, out: int) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(u, size) * torch.fft.rfft(h, size).unsqueeze(-2), size)[..., :out]


class _Convolve(torch.autograd.Function):
    """Keeps the transforms, and does in backward as many again; PyTorch's own gradients take complex ones."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, h: Tensor, size: int, out: int) -> Tensor:
        u_f, h_f = torch.fft.rfft(u, size), torch.fft.rfft(h, size)
        ctx.save_for_backward(u_f, h_f)
        ctx.sizes = size, u.shape[-1], h.shape[-1]
        return torch.fft.irfft(u_f * h_f.unsqueeze(-2), size)[..., :out]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        u_f, h_f = ctx.saved_tensors
        size, seq_len, taps = ctx.sizes
        grad_f = torch.fft.rfft(grad, size)
        dh = torch.fft.irfft((grad_f * u_f.conj()).sum((0, 2)), size)[..., :taps]
        return torch.fft.irfft(grad_f.mul_(h_f.conj().unsqueeze(-2)), size)[..., :seq_len], dh, None, None


class _NativeLongConv(torch.autograd.Function):
    """Adds up every tap; u [b, s, c] and h [c, k], k <= s."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, h: Tensor) -> Tensor:
        u = channels_contiguous(u)
        out, taps = torch.empty_like(u), h.t().contiguous()
        require_kernels().long_conv_forward(*u.shape, len(taps), u, *u.stride()[:2], taps, out, *out.stride()[:2])
        ctx.save_for_backward(u, taps)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        u, taps = ctx.saved_tensors
        grad = channels_contiguous(grad)
        du, dtaps = torch.empty_like(u), torch.empty_like(taps)
        require_kernels().long_conv_backward(
            *u.shape, len(taps), u, *u.stride()[:2], taps, grad, *grad.stride()[:2], du, *du.stride()[:2], dtaps
        )
        return du, dtaps.t()


def _few_taps(seq_len: int, taps: int) -> bool:
    """Return whether adding up taps is faster than transforms: the first tokens meet fewer than all."""
    return seq_len <= _NATIVE_TOKENS and taps - taps * taps / (2 * seq_len) <= _NATIVE_TAPS


def _native_long_conv(u: Tensor, h: Tensor) -> Tensor:
    return _NativeLongConv.apply(u, h.repeat_interleave(u.shape[2] // len(h), 0))


register(
    "long_conv",
    "long convolution",
    Implementation("short_conv", f"at most {DIRECT_TAPS} taps", lambda u, h: h.shape[1] <= DIRECT_TAPS, _add_taps),
    triton_kernels(
        toeplitz.long_conv,
        f"at most {toeplitz.MAX_TAPS} taps, a filter for at least {toeplitz.MIN_COLUMNS} channels times sequences",
        toeplitz.fits,
    ),
    Implementation(
        "C kernels",
        f"float32 on a CPU, at most {_NATIVE_TAPS} taps that meet a token in the mean, and {_NATIVE_TOKENS} tokens",
        lambda u, h: _few_taps(u.shape[1], h.shape[1]) and kernels_for(u, h) is not None,
        _native_long_conv,
    ),
    otherwise("convolve, in segments", _convolve_segments),
    sample=lambda one: (one.unsqueeze(0), one.expand(1, DIRECT_TAPS + 1)),
)
register(
    "convolve",
    "Fourier transforms",
    plain(_plain_convolve),
    otherwise("PyTorch, with its own gradient", _Convolve.apply),
)
