"""Causal softmax attention with grouped heads and an optional sliding window (Vaswani et al. 2017; Ainslie et al. 2023, arXiv 2305.13245)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.blocks import CPU_BLOCK_ELEMENTS, runs
from hybridtron.ops.precision import accumulation_dtype, under_transforms

aten = torch.ops.aten

QUERY_BLOCK = 64
KEPT_PROBABILITIES = 1 << 26


class QueryBlock(NamedTuple):
    """Queries [start, stop) and the keys [first, last) that any of them sees."""

    start: int
    stop: int
    first: int
    last: int


def query_blocks(num_queries: int, num_keys: int, window: int | None) -> list[QueryBlock]:
    ahead = num_keys - num_queries
    return [
        QueryBlock(run.start, run.stop, 0 if window is None else max(0, run.start + ahead - window + 1), run.stop + ahead)
        for run in runs(num_queries, QUERY_BLOCK)
    ]
def attention_flops(seq_len: int, num_heads: int, head_dim: int, window: int | None = None) -> int:
    return sum(
        4 * num_heads * head_dim * (b.stop - b.start) * (b.last - b.first) for b in query_blocks(seq_len, seq_len, window)
    )
def attention(q,k,v,window=None,scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(q, k, v, window, scale)
def _mask(block: QueryBlock, ahead: int, window, q):
    queries = torch.arange(block.start, block.stop, device=q.device).unsqueeze(1) + ahead
    keys = torch.arange(block.first, block.last, device=q.device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)
class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, window, scale):
        b, s, h, d = q.shape
        t, kv, dv = k.shape[1], k.shape[2], v.shape[3]
        blks = query_blocks(s, t, window)
        masks = [_mask(x, t - s, window, q) for x in blks]
        qh = q.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4)  # [b, kv, r, s, d]
        kh = k.transpose(1, 2)
        vh = v.transpose(1, 2)
        out = torch.empty(b,s,h,dv) if q.stride(0)>q.stride(1) else torch.empty(s, b, h, dv).transpose(0, 1)
        oh = out.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4)
        size = sum((x.stop - x.start) * (x.last - x.first) for x in blks)*h
        probs = torch.empty(b, size)
        for i in range(b):
            ki, vi = kh[i].contiguous(), vh[i].contiguous()
            at = 0
            for x, m in zip(blks, masks):
                Q, K = x.stop - x.start, x.last - x.first
                p = probs[i, at : at + h * Q * K].view(kv, -1, K)
                at += h * Q * K
                qb = qh[i, :, :, x.start : x.stop].reshape(kv, -1, d)
                torch.baddbmm(p, qb, ki[:, x.first : x.last].transpose(1, 2), beta=0, alpha=scale, out=p)
                p4=p.view(-1, Q, K)
                if window is None: p4[..., K-Q:].add_(m[:, K-Q:])
                else: p4.add_(m)
                torch.softmax(p, -1, out=p)
                oh[i, :, :, x.start : x.stop] = torch.bmm(p, vi[:, x.first : x.last]).view(kv, -1, Q, dv)
        ctx.save_for_backward(q, k, v, probs)
        ctx.blks = blks
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, probs = ctx.saved_tensors
        b, s, h, d = q.shape
        t, kv, dv = k.shape[1], k.shape[2], v.shape[3]
        qh = q.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4)  # [b, kv, r, s, d]
        gh = grad.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4)  # [b, kv, r, s, d]
        kh = k.transpose(1, 2)
        vh = v.transpose(1, 2)
        dq, dk, dv_ = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dqh = dq.unflatten(2, (kv, h // kv)).permute(0, 2, 3, 1, 4)
        for i in range(b):
            ki, vi = kh[i].contiguous(), vh[i].contiguous()
            dki, dvi = torch.zeros_like(ki), torch.zeros_like(vi)
            at = 0
            for x in ctx.blks:
                Q, K = x.stop - x.start, x.last - x.first
                p = probs[i, at : at + h * Q * K].view(kv, -1, K)
                at += h * Q * K
                qb = (qh[i, :, :, x.start : x.stop]*ctx.scale).reshape(kv, -1, d)
                gb = gh[i, :, :, x.start : x.stop].reshape(kv, -1, dv)
                dvi[:, x.first : x.last].baddbmm_(p.transpose(1, 2), gb)
                dp = torch.bmm(gb, vi[:, x.first : x.last].transpose(1, 2))
                aten._softmax_backward_data.out(dp, p, -1, p.dtype, grad_input=dp)
                dki[:, x.first : x.last].baddbmm_(dp.transpose(1, 2), qb)
                dqb = torch.bmm(dp, ki[:, x.first : x.last])
                torch.mul(dqb.view(kv, -1, Q, d), ctx.scale, out=dqh[i, :, :, x.start : x.stop])
            dk[i] = dki.transpose(0, 1)
            dv_[i] = dvi.transpose(0, 1)
        return dq, dk, dv_, None, None
