"""Causal softmax attention with grouped heads and an optional sliding window."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.blocks import CPU_BLOCK_ELEMENTS, runs
from hybridtron.ops.precision import accumulation_dtype, under_transforms

aten = torch.ops.aten

QUERY_BLOCK = 128
SCORES = 1 << 18
KEEP = True


class QueryBlock(NamedTuple):
    start: int
    stop: int
    first: int
    last: int


def query_blocks(num_queries: int, num_keys: int, window: int | None) -> list[QueryBlock]:
    ahead = num_keys - num_queries
    return [
        QueryBlock(
            run.start, run.stop, 0 if window is None else max(0, run.start + ahead - window + 1), run.stop + ahead
        )
        for run in runs(num_queries, QUERY_BLOCK)
    ]


def attention_flops(seq_len: int, num_heads: int, head_dim: int, window: int | None = None) -> int:
    return sum(
        4 * num_heads * head_dim * (b.stop - b.start) * (b.last - b.first)
        for b in query_blocks(seq_len, seq_len, window)
    )


def attention(q, k, v, window=None, scale=None):
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _Attention.apply(q, k, v, window, scale)


def _mask(block: QueryBlock, ahead: int, window, q):
    queries = torch.arange(block.start, block.stop, device=q.device).unsqueeze(1) + ahead
    keys = torch.arange(block.first if window else block.start + ahead, block.last, device=q.device)
    hidden = keys > queries
    if window is not None:
        hidden |= keys <= queries - window
    return torch.zeros(hidden.shape, dtype=q.dtype, device=q.device).masked_fill_(hidden, -torch.inf)


def _grouped(x, kv):
    """[b, q, h, d] -> [b * kv, r * q, d] contiguous"""
    return x.unflatten(2, (kv, -1)).permute(0, 2, 3, 1, 4).reshape(x.shape[0] * kv, -1, x.shape[3])


def _ungrouped(x, h, b):
    """[b * kv, r * q, d] -> [b, q, h, d]"""
    return x.view(b, h, -1, x.shape[-1]).transpose(1, 2)


def _probs(p, queries, keys, scale, mask):
    torch.baddbmm(p, queries, keys.transpose(1, 2), beta=0, alpha=scale, out=p)
    Q = mask.shape[0]
    p.view(-1, Q, p.shape[-1])[..., -mask.shape[1] :].add_(mask)
    return torch.softmax(p, -1, out=p)


def _groups(b, h, blk):
    return runs(b, max(1, SCORES // (h * (blk.stop - blk.start) * (blk.last - blk.first))))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, window, scale):
        b, s, h, d = q.shape
        t, kv, dv = k.shape[1], k.shape[2], v.shape[3]
        blks = query_blocks(s, t, window)
        keys, values = _grouped(k, kv), _grouped(v, kv)
        out = torch.empty(b, s, h, dv) if v.stride(0) > v.stride(1) else torch.empty(s, b, h, dv).transpose(0, 1)
        saved = []
        ctx.masks = []
        for x in blks:
            mask = _mask(x, t - s, window, q)
            queries = _grouped(q[:, x.start : x.stop], kv)
            Q, K = x.stop - x.start, x.last - x.first
            o = queries.new_empty(b * kv, queries.shape[1], dv)
            p = queries.new_empty(b * kv if KEEP else max(1, SCORES // (h * Q * K)) * kv, queries.shape[1], K)
            for g in _groups(b, h, x):
                i = slice(g.start * kv, g.stop * kv)
                pi = _probs(p[i] if KEEP else p[: i.stop - i.start], queries[i], keys[i, x.first : x.last], scale, mask)
                torch.bmm(pi, values[i, x.first : x.last], out=o[i])
            out[:, x.start : x.stop] = _ungrouped(o, h, b)
            saved += [queries, p] if KEEP else [queries]
            ctx.masks.append(mask)
        ctx.save_for_backward(keys, values, *saved)
        ctx.blks = blks
        ctx.scale = scale
        ctx.h = h
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        keys, values, *saved = ctx.saved_tensors
        b, s, h, dv = grad.shape
        kv = len(keys) // b
        d = keys.shape[-1]
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        dq = torch.empty(b, h, s, d).transpose(1, 2)
        for n, x in enumerate(ctx.blks):
            mask = ctx.masks[n]
            if KEEP:
                queries, p = saved[2 * n], saved[2 * n + 1]
            else:
                queries = saved[n]
            Q, K = x.stop - x.start, x.last - x.first
            do = _grouped(grad[:, x.start : x.stop], kv)
            dqueries = torch.empty_like(queries)
            gs = max(1, SCORES // (h * Q * K)) * kv
            dp = queries.new_empty(gs, queries.shape[1], K)
            if not KEEP:
                pp = torch.empty_like(dp)
            for g in _groups(b, h, x):
                i = slice(g.start * kv, g.stop * kv)
                ki, vi = keys[i, x.first : x.last], values[i, x.first : x.last]
                pi = p[i] if KEEP else _probs(pp[: i.stop - i.start], queries[i], ki, ctx.scale, mask)
                dpi = dp[: i.stop - i.start]
                dvalues[i, x.first : x.last].baddbmm_(pi.transpose(1, 2), do[i])
                torch.bmm(do[i], vi.transpose(1, 2), out=dpi)
                aten._softmax_backward_data.out(dpi, pi, -1, pi.dtype, grad_input=dpi)
                dkeys[i, x.first : x.last].baddbmm_(dpi.transpose(1, 2), queries[i], alpha=ctx.scale)
                torch.baddbmm(dqueries[i], dpi, ki, beta=0, alpha=ctx.scale, out=dqueries[i])
            dq[:, x.start : x.stop] = _ungrouped(dqueries, h, b)
        return (
            dq,
            dkeys.unflatten(0, (b, kv)).transpose(1, 2),
            dvalues.unflatten(0, (b, kv)).transpose(1, 2),
            None,
            None,
        )
