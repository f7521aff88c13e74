"""What PyTorch's scaled_dot_product_attention keeps on CUDA, for tensors without values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_FLASH_WIDTH = 256  # channels of a head, at most
_ALIGNED_BYTES = 16  # of a head's channels, that the kernels with a mask or for float32 want
_MASK_MULTIPLE = 16  # to which the rows of a mask are padded


def fused_without_values(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float,
    enable_gqa: bool,
) -> Tensor:
    """Return the shape of `scaled_dot_product_attention` on q [b, h, s, d], keeping what it keeps on CUDA.

    The kernel is the one that select_sdp_backend chooses on an H100 (PyTorch 2.13,
    aten/src/ATen/native/transformers/cuda/sdp_utils.cpp): the flash kernel for 16 bit numbers without a mask; with one
    the memory-efficient kernel, or cuDNN's for grouped heads; the memory-efficient kernel for float32. Grouped heads in
    float32, and heads of a width that these do not take, keep the scores.
    """
    widths, half = (q.shape[-1], v.shape[-1]), q.element_size() == 2
    if attn_mask is None and half and widths[0] == widths[1] <= _FLASH_WIDTH:
        pad = -widths[0] % 8
        q, k, v = (F.pad(t, (0, pad)) if pad else t for t in (q, k, v))
        return _Fused.apply(q, k, v, None)[..., : widths[1]]
    if (enable_gqa and not half) or any(width * q.element_size() % _ALIGNED_BYTES for width in widths):
        return torch.ops.aten._scaled_dot_product_attention_math(
            q, k, v, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    if attn_mask is not None:
        attn_mask = F.pad(attn_mask, (0, -attn_mask.shape[-1] % _MASK_MULTIPLE))
    return _Fused.apply(q, k, v, attn_mask)


class _Fused(torch.autograd.Function):
    """Keeps what all of these kernels keep: their inputs, outputs and, in float32, the logarithms of the sums
    (tools/autograd/derivatives.yaml)."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, num_queries, _ = q.shape
        out = q.new_empty(batch, num_queries, heads, v.shape[-1]).transpose(1, 2)
        log_sums = q.new_empty(batch, heads, num_queries, dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, log_sums, mask)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Take the memory of the flash kernel (mha_bwd of flash_api.cpp): dq in float32, too, and dk and dv by head."""
        q, k, v, *_ = ctx.saved_tensors
        accumulated = torch.empty_like(q, dtype=torch.float32)
        by_head = [q.new_empty(*q.shape[:2], *t.shape[2:]) for t in (k, v)]
        summed = by_head if k.shape == by_head[0].shape else [torch.empty_like(t) for t in (k, v)]
        return accumulated.to(q.dtype), *summed, None
