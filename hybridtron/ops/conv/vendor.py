"""The short convolution by the package causal-conv1d (Dao & Gu 2024)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hybridtron.ops.dispatch import Implementation
from hybridtron.ops.vendor import on_cuda, usable, vendor_function

_MODULE = "causal_conv1d.causal_conv1d_interface"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MULTIPLE = 8  # of channels and strides that the kernel for contiguous channels wants
_ALIGNED_BYTES = 16


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Literal["silu"] | None = None
) -> Tensor:
    """Compute `short_conv` of x [b, s, c] with weight [c, 2 to 4]; returns [b, s, c].

    The package takes [b, c, s] with contiguous channels or contiguous tokens. The first is a view of ours, if channels
    are a multiple of 8 and rows lie on multiples of 16 bytes; x is copied to meet that.
    """
    function = vendor_function(_MODULE, "causal_conv1d_fn")
    bias = None if bias is None else bias.to(weight.dtype)
    if x.shape[2] % _MULTIPLE:
        return function(x.transpose(1, 2).contiguous(), weight, bias, activation=activation).transpose(1, 2)
    y = function(with_aligned_rows(x).transpose(1, 2), weight, bias, activation=activation).transpose(1, 2)
    if y.requires_grad:
        y.register_hook(with_aligned_rows)
    return y


def with_aligned_rows(x: Tensor) -> Tensor:
    """Return x [b, s, c] if the kernel can read its rows where they are, else a contiguous copy."""
    batch, row, channel = x.stride()
    strides = channel == 1 and row > 1 and row % _MULTIPLE == 0 and batch % _MULTIPLE == 0
    if strides and x.storage_offset() * x.element_size() % _ALIGNED_BYTES == 0:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _accepts(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> bool:
    return on_cuda(x, weight, bias) and 2 <= weight.shape[1] <= 4 and x.dtype in _DTYPES and usable(_MODULE)


CAUSAL_CONV1D = Implementation("causal-conv1d", "on CUDA, 2 to 4 taps, not float64", _accepts, causal_conv1d)
