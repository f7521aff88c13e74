"""Multi-head Hyena's convolution by pairs of tokens in compiled kernels: backward computes the scores again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.memory_layout import channels_contiguous, empty_laid_out_as, with_strides
from hybridtron.ops.native.library import flops_are_counted, kernels_for, require_kernels

MOST_TOKENS, MOST_WIDTH = 2048, 32  # MOST_OUTER_TOKENS and MOST_OUTER_WIDTH of outer_conv.c
_SEQUENCES = 8  # SEQUENCES of outer_conv.c, whose gradients of the filters are added up there


def takes_native_outer_conv(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> bool:
    """Return whether the kernels take these tensors.

    They leave them to others where FLOPs of PyTorch are counted: those of compiled products would not be seen.
    """
    return (
        1 <= q.shape[1] <= MOST_TOKENS
        and q.shape[2] >= 1
        and q.shape[3] % 8 == 0
        and 8 <= q.shape[3] <= MOST_WIDTH
        and kernels_for(q, k, v, h) is not None
        and not flops_are_counted()
    )


class NativeOuterConv(torch.autograd.Function):
    """Compute `outer_conv` of q, k and v [b, s, m, d] with h [m, s]; keeps these alone."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
        q, k, v = map(channels_contiguous, (q, k, v))
        h, out = h.contiguous(), empty_laid_out_as(v, v.shape)
        require_kernels().outer_conv_forward(*q.shape, *with_strides(q, k, v), h, *with_strides(out))
        ctx.save_for_backward(q, k, v, h)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        q, k, v, h = ctx.saved_tensors
        found = [empty_laid_out_as(t, t.shape) for t in (q, k, v)]
        dh = h.new_empty(-(-len(q) // _SEQUENCES), *h.shape)
        arrays = (*with_strides(q, k, v), h, *with_strides(channels_contiguous(grad), *found))
        require_kernels().outer_conv_backward(*q.shape, *arrays, dh)
        return *found, dh.sum(0)
