"""Softmax attention over blocks of queries, each with only the keys that some query of the block sees."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.cuts import QueryBlock, query_blocks
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import empty_laid_out_as
from hybridtron.ops.native.library import require_kernels

aten = torch.ops.aten

_SCORES = 1 << 17  # scores in work at a time: 512 KiB of float32 stay in a core's cache
_KEPT_PROBABILITIES = 1 << 24  # above this many (64 MiB of float32 a layer) backward computes them again


def mask_of(block: QueryBlock, like: Tensor) -> Tensor:
    """Return the addend to a block's scores for its keys [masked, last): 0, or -inf where the query must not look."""
    queries = torch.arange(block.position, block.last, device=like.device).unsqueeze(1)
    keys = torch.arange(block.masked, block.last, device=like.device)
    hidden = keys > queries
    if block.window is not None:
        hidden |= keys <= queries - block.window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, -torch.inf)


def group(x: Tensor, kv: int) -> Tensor:
    """Group [b, s, h, d] to [b * kv, h / kv * s, d]: queries that share a key head become rows of one matrix."""
    return x.unflatten(2, (kv, -1)).permute(0, 2, 3, 1, 4).reshape(x.shape[0] * kv, -1, x.shape[3])


def ungroup(x: Tensor, batch: int, heads: int) -> Tensor:
    """Invert `_group`, as a view."""
    return x.view(batch, heads, -1, x.shape[-1]).transpose(1, 2)


class _Sinks(NamedTuple):
    """One more score for each head [h] in its softmaxes, and the share of the softmax it takes for each query."""

    scores: Tensor
    shares: Tensor  # [b * kv, h / kv * queries]


def _probabilities(
    out: Tensor,
    queries: Tensor,
    keys: Tensor,
    block: QueryBlock,
    mask: Tensor | None,
    scale: float,
    sinks: _Sinks | None,
) -> Tensor:
    """Write softmax(scale queries keys^T + mask) into `out` [b * kv, h / kv * queries, keys] and return it.

    Without a mask the kernels hide the keys that the block must not see. Writes the shares of the sinks as well.
    """
    if mask is None:
        torch.bmm(queries, keys.transpose(1, 2), out=out)
        heads, scores, shares = (0, None, None) if sinks is None else (len(sinks.scores), *sinks)
        require_kernels().softmax_forward(*_softmax_sizes(out, block), scale, out, heads, scores, shares)
        return out
    torch.baddbmm(out, queries, keys.transpose(1, 2), beta=0, alpha=scale, out=out)
    num_queries, num_masked = mask.shape
    by_query = out.view(-1, num_queries, out.shape[-1])
    by_query[..., out.shape[-1] - num_masked :].add_(mask)
    if sinks is None:
        return torch.softmax(out, -1, out=out)
    by_head = by_query.unflatten(0, (-1, len(sinks.scores)))  # [b, h, queries, keys]
    above = by_head.logsumexp(-1) - sinks.scores.unsqueeze(1)
    torch.sigmoid(-above, out=sinks.shares.view(above.shape))
    torch.softmax(out, -1, out=out)
    by_head.mul_(torch.sigmoid(above).unsqueeze(-1))
    return out


class BlockAttention(torch.autograd.Function):
    """Matmul, softmax, matmul over one block of queries of a few sequences at a time: the scores stay in cache.

    Sinks [h] are in the dtype of accumulation. As a key without a value a sink changes no formula of the gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, sinks: Tensor | None, native: bool
    ) -> Tensor:
        batch, num_queries, heads, _ = q.shape
        num_keys, kv, dtype = k.shape[1], k.shape[2], accumulation_dtype(q)
        blocks = query_blocks(num_queries, num_keys, window)
        kept = batch * heads * sum(block.num_queries * block.num_keys for block in blocks) <= _KEPT_PROBABILITIES
        keys, values = group(k.to(dtype), kv), group(v.to(dtype), kv)
        out = empty_laid_out_as(v, (batch, num_queries, heads, v.shape[3]), q.dtype)
        # The kernels hide keys by themselves.
        saved, masks = [], [None if native else mask_of(block, keys) for block in blocks]
        for block, mask in zip(blocks, masks, strict=True):
            queries = group(q[:, block.start : block.stop].to(dtype), kv)
            outputs = queries.new_empty(*queries.shape[:2], values.shape[2])
            step, seen = _matrices_at_a_time(batch, heads, kv, block), slice(block.first, block.last)
            probabilities = queries.new_empty(len(queries) if kept else step, queries.shape[1], block.num_keys)
            shares = queries.new_empty(queries.shape[:2]) if sinks is not None else None
            parts = (tensor.split(step) for tensor in (queries, keys[:, seen], values[:, seen], outputs))
            for index, (some, their_keys, their_values, out_part) in enumerate(zip(*parts, strict=True)):
                start = index * step if kept else 0
                p, own = probabilities[start : start + len(some)], _own_sinks(sinks, shares, index * step, len(some))
                torch.bmm(_probabilities(p, some, their_keys, block, mask, scale, own), their_values, out=out_part)
            out[:, block.start : block.stop] = ungroup(outputs, batch, heads)
            saved += [queries, probabilities if kept else None, shares]
        ctx.save_for_backward(keys, values, sinks, *saved)
        ctx.plan, ctx.scale, ctx.dtypes = list(zip(blocks, masks, strict=True)), scale, (q.dtype, k.dtype, v.dtype)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        keys, values, sinks, *saved = ctx.saved_tensors
        batch, num_queries, heads, _ = grad.shape
        kv, scale = len(keys) // batch, ctx.scale
        dq = keys.new_empty(batch, heads, num_queries, keys.shape[2]).transpose(1, 2)
        dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
        dsinks = None if sinks is None else torch.zeros_like(sinks)
        for (block, mask), queries, probabilities, shares in zip(
            ctx.plan, saved[::3], saved[1::3], saved[2::3], strict=True
        ):
            doutputs = group(grad[:, block.start : block.stop].to(keys.dtype), kv)
            dqueries = torch.empty_like(queries)
            step, seen = _matrices_at_a_time(batch, heads, kv, block), slice(block.first, block.last)
            shape = (step, queries.shape[1], block.num_keys)
            scores, again = queries.new_empty(shape), None if probabilities is not None else queries.new_empty(shape)
            sums = None if shares is None else torch.empty_like(shares)
            by_key = (tensor[:, seen] for tensor in (keys, values, dkeys, dvalues))
            parts = (tensor.split(step) for tensor in (queries, doutputs, dqueries, *by_key))
            for index, (some, dy, dsome, k, v, dk, dv) in enumerate(zip(*parts, strict=True)):
                if again is None:
                    p = probabilities[index * step : index * step + len(some)]
                else:
                    own = _own_sinks(sinks, shares, index * step, len(some))
                    p = _probabilities(again[: len(some)], some, k, block, mask, scale, own)
                ds = torch.bmm(dy, v.transpose(1, 2), out=scores[: len(some)])
                own_sums = None if sums is None else sums[index * step : index * step + len(some)]
                if mask is None:
                    require_kernels().softmax_backward(*_softmax_sizes(ds, block), p, ds, own_sums)
                else:
                    if own_sums is not None:
                        torch.sum(p * ds, -1, out=own_sums)
                    aten._softmax_backward_data.out(ds, p, -1, p.dtype, grad_input=ds)
                dv.add_(torch.bmm(p.transpose(1, 2), dy))
                dk.add_(torch.bmm(ds.transpose(1, 2), some), alpha=scale)
                torch.baddbmm(dsome, ds, k, beta=0, alpha=scale, out=dsome)
            dq[:, block.start : block.stop] = ungroup(dqueries, batch, heads)
            if dsinks is not None and shares is not None and sums is not None:
                dsinks -= shares.mul(sums).view(batch, heads, -1).sum((0, 2))
        outcome = (dq, ungroup(dkeys, batch, kv), ungroup(dvalues, batch, kv))
        return *(tensor.to(dtype) for tensor, dtype in zip(outcome, ctx.dtypes, strict=True)), None, None, dsinks, None


def _own_sinks(sinks: Tensor | None, shares: Tensor | None, start: int, matrices: int) -> _Sinks | None:
    """Return the sinks for the score matrices from `start` on."""
    return None if sinks is None or shares is None else _Sinks(sinks, shares[start : start + matrices])


def _softmax_sizes(scores: Tensor, block: QueryBlock) -> tuple[int, ...]:
    """Return the sizes that the softmax kernels take for scores [.., keys] of a block."""
    window = block.last if block.window is None else block.window
    return scores.numel() // block.num_keys, block.num_queries, block.num_keys, block.position - block.first, window


def _matrices_at_a_time(batch: int, heads: int, kv: int, block: QueryBlock) -> int:
    """Return how many of the b * kv score matrices of a block to work on at a time: those of whole sequences."""
    return kv * min(batch, max(1, _SCORES // (heads * block.num_queries * block.num_keys)))
