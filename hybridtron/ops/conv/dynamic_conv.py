"""Short causal depthwise convolution whose taps depend on the token, as in Jet-Nemotron (arXiv 2508.15884)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.elementwise.precision import accumulation_dtype, by_formula


def dynamic_conv(x: Tensor, taps: Tensor) -> Tensor:
    """Compute y_t = sum_j taps_t[j] * x_{t - k + 1 + j} by channel, with zeros before t = 0.

    x [b, s, c], taps [b, s, k, c]; returns [b, s, c] in the dtype of x, accumulated in float32.
    """
    return _slide(F.pad(x, (0, 0, taps.shape[2] - 1, 0)), taps)


def dynamic_conv_reference(x: Tensor, taps: Tensor) -> Tensor:
    """Compute `dynamic_conv` in float64, token by token."""
    cache, outputs = x.new_zeros(x.shape[0], taps.shape[2] - 1, x.shape[2]).double(), []
    for inputs, weights in zip(x.double().unbind(1), taps.double().unbind(1), strict=True):
        y, cache = dynamic_conv_step(cache, inputs, weights)
        outputs.append(y)
    return torch.stack(outputs, 1)


def dynamic_conv_step(cache: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one token of `dynamic_conv`: x [b, c], taps [b, k, c], cache [b, k - 1, c] of the inputs before it.

    Returns y [b, c] and the cache for the next token.
    """
    window, dtype = torch.cat([cache, x.unsqueeze(1)], 1), accumulation_dtype(x)
    return (window.to(dtype) * taps.to(dtype)).sum(1).to(x.dtype), window[:, 1:]


def dynamic_conv_prefill(cache: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `dynamic_conv` of x [b, s, c] after the inputs in cache [b, k - 1, c]; returns y and the cache."""
    inputs = torch.cat([cache, x], 1)
    return _slide(inputs, taps), inputs[:, x.shape[1] :].clone()


def _slide(inputs: Tensor, taps: Tensor) -> Tensor:
    """Compute the outputs of the last s tokens of inputs [b, k - 1 + s, c] by taps [b, s, k, c]."""
    return (_correlate if by_formula() else _DynamicConv.apply)(inputs, taps)


def _correlate(inputs: Tensor, taps: Tensor) -> Tensor:
    """Compute `_slide` one tap after another."""
    dtype, seq_len = accumulation_dtype(inputs), taps.shape[1]
    first, *others = taps.unbind(2)
    y = inputs[:, :seq_len].to(dtype) * first
    for tap, weights in enumerate(others, 1):
        y = torch.addcmul(y, inputs[:, tap : tap + seq_len].to(dtype), weights.to(dtype))
    return y.to(inputs.dtype)


class _DynamicConv(torch.autograd.Function):
    """`_correlate` with a backward pass that writes each tap's gradient where it belongs."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, taps: Tensor) -> Tensor:
        ctx.save_for_backward(inputs, taps)
        return _correlate(inputs, taps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        inputs, taps = ctx.saved_tensors
        seq_len, dtype = taps.shape[1], accumulation_dtype(inputs)
        dinputs, dtaps = torch.zeros_like(inputs, dtype=dtype), torch.empty_like(taps)
        dy = grad.to(dtype)
        for tap, weights in enumerate(taps.unbind(2)):
            window = slice(tap, tap + seq_len)
            dinputs[:, window].addcmul_(dy, weights.to(dtype))
            dtaps[:, :, tap] = grad * inputs[:, window]
        return dinputs.to(inputs.dtype), dtaps
