"""Attention of many small heads by compiled kernels that hold scores in registers and cache."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.memory_layout import channels_contiguous, empty_laid_out_as, with_strides
from hybridtron.ops.native.library import kernels_for, require_kernels

MOST_KEYS, MOST_WIDTH = 1024, 64  # MOST_HEAD_KEYS and MOST_HEAD_WIDTH of small_heads.c
_HEADS = 32  # of all sequences: fewer are large enough matrices for batched products


def takes_small_heads(window: int | None, scale: float, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None) -> bool:
    """Return whether the kernels take these tensors, and there are enough heads for them to be faster."""
    widths = (q.shape[-1], v.shape[-1])
    return (
        sinks is None
        and q.shape[0] * q.shape[2] >= _HEADS
        and k.shape[1] <= MOST_KEYS
        and all(width % 8 == 0 and width <= MOST_WIDTH for width in widths)
        and kernels_for(q, k, v) is not None
    )


class SmallHeads(torch.autograd.Function):
    """Keeps its inputs and the logarithm of the sum of each softmax."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, sinks: Tensor | None
    ) -> Tensor:
        q, k, v = map(channels_contiguous, (q, k, v))
        batch, num_queries, heads, width = q.shape
        sizes = (batch, num_queries, k.shape[1], heads, k.shape[2], width, v.shape[3], window or k.shape[1])
        out = empty_laid_out_as(v, (batch, num_queries, heads, v.shape[3]))
        log_sums = q.new_empty(batch, heads, num_queries)
        require_kernels().heads_forward(*sizes, scale, *with_strides(q, k, v, out), log_sums)
        ctx.save_for_backward(q, k, v, log_sums)
        ctx.sizes, ctx.scale = sizes, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, log_sums = ctx.saved_tensors
        found = [empty_laid_out_as(t, t.shape) for t in (q, k, v)]
        after = with_strides(channels_contiguous(grad), *found)
        require_kernels().heads_backward(*ctx.sizes, ctx.scale, *with_strides(q, k, v), log_sums, *after)
        return *found, None, None, None
