"""Causal attention by a compiled kernel, in float32 on a CPU: no scores are kept, backward computes them again."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.attention.query_blocks import ungroup
from hybridtron.ops.attention.tiles import UNSEEN, sink_gradients, tiled_gradients
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import empty_laid_out_as
from hybridtron.ops.native.library import flops_are_counted, require_kernels

_GROUP, _PACKED, _MOST_WIDTH = 8, 32, 512  # of attention.c: queries at a time, keys or channels at a time, channels


def takes_native_attention(window: int | None, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Return whether the kernel takes these tensors. It leaves them to others where FLOPs of PyTorch are counted: those
    of its own, as many, would not be seen."""
    if window is not None and window < k.shape[1]:
        return False
    return v.shape[3] % _PACKED == 0 and q.shape[3] <= _MOST_WIDTH and not flops_are_counted()


class NativeAttention(torch.autograd.Function):
    """Compute `attention` over all keys up to each query, without decays."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, sinks: Tensor | None, softcap: float
    ) -> Tensor:
        (batch, num_queries, heads, width), (_, num_keys, kv, channels) = q.shape, v.shape
        padded = -(-num_queries // _GROUP) * _GROUP
        shape = (batch * kv, heads // kv, padded)
        queries = _by_head(q, padded)
        out = queries.new_zeros(*shape, channels)
        if sinks is None:
            largest, total = queries.new_full(shape, UNSEEN), queries.new_zeros(shape)
        else:  # one more score, without a value
            largest = sinks.view(1, heads, 1).expand(batch, heads, padded).reshape(shape).contiguous()
            total = queries.new_ones(shape)
        require_kernels().attention_forward(
            *shape, num_keys - num_queries, num_keys, width, channels, scale, softcap, queries, _packed(k),
            _by_head(v, num_keys), out, largest, total,
        )  # fmt: skip
        y = empty_laid_out_as(v, (*q.shape[:3], channels), q.dtype)
        y.copy_(ungroup(out.div_(total.unsqueeze(-1)).flatten(0, 1), batch, heads)[:, :num_queries])
        ctx.save_for_backward(q, k, v, sinks, None, y, largest.add_(total.log_())[..., :num_queries])
        ctx.scale, ctx.softcap = scale, softcap
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: recomputation frees what it has handed out
        q, k, v, sinks, _, out, log_sums = saved
        if q.shape[3] % _PACKED or v.shape[3] > _MOST_WIDTH:
            dq, dk, dv, dsinks, _ = tiled_gradients(saved, grad, None, ctx.scale, ctx.softcap)
            return dq, dk, dv, None, dsinks, None
        (batch, num_queries, _, width), (_, num_keys, kv, channels) = q.shape, v.shape
        padded, shape = -(-num_queries // _GROUP) * _GROUP, log_sums.shape
        along = (grad.to(log_sums.dtype) * out).sum(-1).transpose(1, 2).reshape(shape)
        more = (0, padded - num_queries)
        queries, keys, values = _by_head(q, padded), _packed(k), _packed(v)
        dq, dk = torch.zeros_like(queries), torch.zeros_like(keys).view(batch, kv, -1, width)
        dv = torch.zeros_like(values).view(batch, kv, -1, channels)
        require_kernels().attention_backward(
            *shape[:2], padded, num_keys - num_queries, num_keys, width, channels, ctx.scale, ctx.softcap, queries,
            keys, values, _by_head(k, dk.shape[2]), F.pad(log_sums, more, value=-UNSEEN).contiguous(),
            F.pad(along, more).contiguous(), _by_head(grad, padded), dq, dk, dv,
        )  # fmt: skip
        found = ((dq.mul_(ctx.scale), q), (dk.mul_(ctx.scale), k), (dv, v))
        grads = (x[:, :, : like.shape[1]].transpose(1, 2).to(like.dtype) for x, like in found)
        return *grads, None, sink_gradients(sinks, log_sums, along), None


def _by_head(x: Tensor, tokens: int) -> Tensor:
    """Transpose [b, s, h, d] to [b, h, tokens, d], in the dtype of accumulation, with zeros after the last token."""
    return F.pad(x.to(accumulation_dtype(x)).transpose(1, 2), (0, 0, 0, tokens - x.shape[1])).contiguous()


def _packed(x: Tensor) -> Tensor:
    """Pack [b, t, kv, d] to [b, kv, t / 32, d, 32], the last tokens padded with zeros."""
    return _by_head(x, -(-x.shape[1] // _PACKED) * _PACKED).unflatten(2, (-1, _PACKED)).transpose(3, 4).contiguous()
