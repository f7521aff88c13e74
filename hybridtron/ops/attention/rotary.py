"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864) in the half-split convention of GPT-NeoX and Llama."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.dispatch import Implementation, otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import with_strides
from hybridtron.ops.native.library import kernels_for, require_kernels
from hybridtron.ops.triton import rotary as triton_rotary
from hybridtron.ops.triton.launch import triton_kernels


class Scaling(Protocol):
    """Stretches rotary frequencies; see `hybridtron.mixers.attention.rotary_scaling`."""

    def __hash__(self) -> int: ...

    @property
    def magnitude(self) -> float:
        """Return what rotated channels are multiplied by."""
        ...

    def scale(self, frequencies: Tensor, base: float) -> Tensor:
        """Return the frequencies [r] to use in place of `base`'s own."""
        ...


def rotary_tables(
    seq_len: int,
    rotary_dim: int,
    base: float = 10000.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    offset: int = 0,
    scaling: Scaling | None = None,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin [seq_len, rotary_dim / 2] of position * base^(-2i / rotary_dim), from position `offset` on.

    With `scaling`, of the frequencies that it makes of these, times its magnitude.
    """
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float64, device=device) / rotary_dim
    positions = torch.arange(offset, offset + seq_len, dtype=torch.float64, device=device)
    frequencies = base**-exponents
    if scaling is None:
        angles = torch.outer(positions, frequencies)
        return angles.cos().to(dtype), angles.sin().to(dtype)
    angles = torch.outer(positions, scaling.scale(frequencies, base))
    return (angles.cos() * scaling.magnitude).to(dtype), (angles.sin() * scaling.magnitude).to(dtype)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs (i, i + r) of x [b, s, h, d] by the angles of their positions, with cos and sin [s, r].

    Channels from 2r on pass unchanged. The result lies head by head in memory ([b, h, s, d]), as attention reads it.
    """
    return select("apply_rotary", x, cos, sin)(x, cos, sin)


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Compute `apply_rotary` by its formula."""
    dtype, half = accumulation_dtype(x), cos.shape[-1]
    cos, sin = cos.unsqueeze(1).to(dtype), sin.unsqueeze(1).to(dtype)  # [s, 1, r]
    first, second, rest = x.to(dtype).split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x.dtype)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, native: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.native = native
        b, s, h, d = x.shape
        out = torch.empty(b, h, s, d, dtype=accumulation_dtype(x), device=x.device).transpose(1, 2)
        return _rotate(x, cos, sin, out, native)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        if grad.stride(-1) != 1:
            grad = grad.contiguous()
        out = torch.empty_like(grad, dtype=accumulation_dtype(grad))
        return _rotate(grad, cos, -sin, out, ctx.native), None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, native: bool) -> Tensor:
    """Write into `out`, in the dtype of accumulation, and return it in the dtype of x."""
    half = cos.shape[-1]
    if native:
        cos, sin = cos.contiguous(), sin.contiguous()
        require_kernels().rotate(*x.shape, half, *with_strides(x), cos, sin, *with_strides(out))
        return out
    cos, sin = cos.unsqueeze(1).to(out.dtype), sin.unsqueeze(1).to(out.dtype)  # [s, 1, r]
    first, second = x[..., :half], x[..., half : 2 * half]
    torch.mul(first, cos, out=out[..., :half]).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=out[..., half : 2 * half]).addcmul_(first, sin)
    out[..., 2 * half :] = x[..., 2 * half :]
    return out.to(x.dtype)


register(
    "apply_rotary",
    "rotary embedding",
    plain(rotary_reference, compiled=True),
    triton_kernels(triton_rotary.apply_rotary),
    Implementation(
        "C kernels",
        "float32 on a CPU, channels contiguous",
        lambda x, cos, sin: x.stride(-1) == 1 and kernels_for(x, cos, sin) is not None,
        lambda x, cos, sin: _Rotary.apply(x, cos, sin, True),
    ),
    otherwise("PyTorch, into the result", lambda x, cos, sin: _Rotary.apply(x, cos, sin, False)),
    sample=lambda one: (one, one, one),
)
