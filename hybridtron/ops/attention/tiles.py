"""Softmax attention over tiles of queries and keys, whose scores stay in a core's cache (FlashAttention-2, Dao 2023,
arXiv 2307.08691): none are kept, and the backward pass computes them again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybridtron.ops.attention.query_blocks import group, ungroup
from hybridtron.ops.cuts import QUERIES, QueryBlock, query_blocks
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.memory_layout import empty_laid_out_as
from hybridtron.ops.native.library import require_kernels

_SCORES = 1 << 17  # of a tile: 512 KiB of float32
_KEYS = 256  # of a tile, at least, where the heads can be worked on in turn
UNSEEN = -1e30


class _Tile(NamedTuple):
    """Matrices [first, last) of the b * kv, and the keys that some queries of a block see."""

    matrices: slice
    keys: slice


class _Rows(NamedTuple):
    """Queries of a block [b * kv, h / kv * queries, d], and with decays those of each query and of the block's keys."""

    queries: Tensor
    own: Tensor | None  # [b * kv, h / kv * queries]
    decays: Tensor | None  # [b * h, keys]


class TiledAttention(torch.autograd.Function):
    """Compute `attention` by kernels in float32 on a CPU."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int | None,
        scale: float,
        sinks: Tensor | None,
        softcap: float,
        decays: Tensor | None,
    ) -> Tensor:
        (batch, num_queries, heads, _), kv, dtype = q.shape, k.shape[2], accumulation_dtype(q)
        keys, values = group(k.to(dtype), kv), group(v.to(dtype), kv)
        out = empty_laid_out_as(v, (*q.shape[:3], v.shape[3]), q.dtype)
        log_sums = keys.new_empty(len(keys), heads // kv, num_queries)
        buffer = keys.new_empty(0)
        for block in query_blocks(num_queries, k.shape[1], window):
            rows = _rows(q, kv, block, decays)
            shape = rows.queries.shape[:2]
            if sinks is None:
                largest, total = keys.new_full(shape, UNSEEN), keys.new_zeros(shape)
            else:  # one more score, without a value
                largest, total = _by_row(sinks, batch, kv, block), keys.new_ones(shape)
            outputs = keys.new_zeros(*shape, v.shape[3])
            for some, seen in _tiles(block, *shape):
                queries, y = rows.queries[some], outputs[some]
                buffer, scores = _take(buffer, len(queries), shape[1], seen.stop - seen.start)
                torch.bmm(queries, keys[some, seen].transpose(1, 2), out=scores)
                sizes = _sizes(scores, block, seen)
                require_kernels().softmax_tile_forward(
                    *sizes, scale, softcap, scores, *_decays(rows, some, block, seen, heads // kv),
                    largest[some], total[some], v.shape[3], y,
                )  # fmt: skip
                torch.baddbmm(y, scores, values[some, seen], out=y)
            out[:, block.start : block.stop] = ungroup(outputs.div_(total.unsqueeze(-1)), batch, heads)
            log_sums[..., block.start : block.stop] = largest.add_(total.log_()).unflatten(1, (heads // kv, -1))
        ctx.save_for_backward(q, k, v, sinks, decays, out, log_sums)
        ctx.window, ctx.scale, ctx.softcap = window, scale, softcap
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dq, dk, dv, dsinks, ddecays = tiled_gradients(ctx.saved_tensors, grad, ctx.window, ctx.scale, ctx.softcap)
        return dq, dk, dv, None, None, dsinks, None, ddecays


def tiled_gradients(
    saved: Sequence[Tensor], grad: Tensor, window: int | None, scale: float, softcap: float
) -> tuple[Tensor | None, ...]:
    """Return the gradients of q, k, v, sinks and decays.

    `saved` are these five, the outputs, and the logarithms of the sums of the softmaxes.
    """
    q, k, v, sinks, decays, out, log_sums = saved
    (batch, num_queries, heads, _), kv, dtype = q.shape, k.shape[2], accumulation_dtype(q)
    keys, values = group(k.to(dtype), kv), group(v.to(dtype), kv)
    dq = keys.new_empty(batch, heads, num_queries, q.shape[3]).transpose(1, 2)
    dkeys, dvalues = torch.zeros_like(keys), torch.zeros_like(values)
    ddecays = None if decays is None else keys.new_zeros(batch * heads, k.shape[1])
    along = (grad.to(dtype) * out).sum(-1)  # [b, s, h]: of probabilities times their gradients
    buffers = keys.new_empty(0), keys.new_empty(0)
    for block in query_blocks(num_queries, k.shape[1], window):
        rows = _rows(q, kv, block, decays)
        doutputs, dqueries = group(grad[:, block.start : block.stop].to(dtype), kv), torch.zeros_like(rows.queries)
        centers = group(along[:, block.start : block.stop].unsqueeze(-1), kv).squeeze(-1).contiguous()
        sums = log_sums[..., block.start : block.stop].flatten(1).contiguous()
        own_sums = None if decays is None else torch.zeros_like(sums)
        for some, seen in _tiles(block, *rows.queries.shape[:2]):
            queries, dy = rows.queries[some], doutputs[some]
            shape = len(queries), queries.shape[1], seen.stop - seen.start
            buffers, (p, ds) = zip(*(_take(buffer, *shape) for buffer in buffers), strict=True)
            torch.bmm(queries, keys[some, seen].transpose(1, 2), out=p)
            torch.bmm(dy, values[some, seen].transpose(1, 2), out=ds)
            by_matrix = None if ddecays is None else ds.new_zeros(shape[0] * heads // kv, shape[2])
            require_kernels().softmax_tile_backward(
                *_sizes(p, block, seen), scale, softcap, p, ds, *_decays(rows, some, block, seen, heads // kv),
                sums[some], centers[some], None if own_sums is None else own_sums[some], by_matrix,
            )  # fmt: skip
            dvalues[some, seen] += torch.bmm(p.transpose(1, 2), dy)
            dkeys[some, seen].add_(torch.bmm(ds.transpose(1, 2), queries), alpha=scale)
            torch.baddbmm(dqueries[some], ds, keys[some, seen], alpha=scale, out=dqueries[some])
            if ddecays is not None and by_matrix is not None:
                ddecays[_of_heads(some, heads // kv), seen] -= by_matrix
        dq[:, block.start : block.stop] = ungroup(dqueries, batch, heads)
        if ddecays is not None and own_sums is not None:
            ddecays[:, block.position : block.last] += own_sums.view(batch * heads, -1)
    dsinks = sink_gradients(sinks, log_sums, along.transpose(1, 2).reshape(log_sums.shape))
    if ddecays is not None:
        ddecays = ddecays.view(batch, heads, -1).transpose(1, 2).to(decays.dtype)
    outcome = (dq, ungroup(dkeys, batch, kv), ungroup(dvalues, batch, kv))
    dq, dk, dv = (tensor.to(like.dtype) for tensor, like in zip(outcome, (q, k, v), strict=True))
    return dq, dk, dv, dsinks, ddecays


def sink_gradients(sinks: Tensor | None, log_sums: Tensor, along: Tensor) -> Tensor | None:
    """Return the gradients of sinks [h], from log_sums and along [b * kv, h / kv, queries]."""
    if sinks is None:
        return None
    by_head = (len(log_sums) * log_sums.shape[1] // len(sinks), len(sinks), -1)
    shares = torch.exp(sinks.unsqueeze(-1) - log_sums.reshape(by_head))
    return -(shares * along.reshape(by_head)).sum((0, 2))


def _rows(q: Tensor, kv: int, block: QueryBlock, decays: Tensor | None) -> _Rows:
    """Return the queries of a block, and its decays relative to that of the first query, which keeps them small."""
    queries = group(q[:, block.start : block.stop].to(accumulation_dtype(q)), kv)
    if decays is None:
        return _Rows(queries, None, None)
    relative = decays[:, block.first : block.last] - decays[:, block.position].unsqueeze(1)
    relative = relative.transpose(1, 2).to(queries.dtype).flatten(0, 1).contiguous()
    own = relative[:, block.position - block.first :].reshape(queries.shape[:2]).contiguous()
    return _Rows(queries, own, relative)


def _by_row(sinks: Tensor, batch: int, kv: int, block: QueryBlock) -> Tensor:
    """Repeat sinks [h] to [b * kv, h / kv * queries]."""
    return sinks.view(1, kv, -1, 1).expand(batch, -1, -1, block.num_queries).reshape(batch * kv, -1).clone()


def _tiles(block: QueryBlock, matrices: int, rows: int) -> Iterator[_Tile]:
    """Yield the tiles of a block; of each matrix that on the diagonal, in which every query sees a key, comes first."""
    step = max(1, min(matrices, _SCORES // (rows * min(_KEYS, block.num_keys))))
    keys = max(QUERIES, _SCORES // (step * rows) // QUERIES * QUERIES)
    for first in range(0, matrices, step):
        for last in range(block.last, block.first, -keys):
            yield _Tile(slice(first, min(first + step, matrices)), slice(max(block.first, last - keys), last))


def _take(buffer: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    """Return the buffer, or a larger one, and memory of this shape at its beginning."""
    size = shape[0] * shape[1] * shape[2]
    if buffer.numel() < size:
        buffer = buffer.new_empty(size)
    return buffer, buffer[:size].view(shape)


def _sizes(scores: Tensor, block: QueryBlock, seen: slice) -> tuple[int, ...]:
    """Return the sizes that the kernels take for scores [.., rows, keys] of a tile."""
    window = block.last if block.window is None else block.window
    matrices, rows, keys = scores.shape
    return matrices * rows, block.num_queries, keys, block.position - seen.start, window


def _of_heads(matrices: slice, repeats: int) -> slice:
    return slice(matrices.start * repeats, matrices.stop * repeats)


def _decays(
    rows: _Rows, some: slice, block: QueryBlock, seen: slice, repeats: int
) -> tuple[Tensor | None, int, Tensor | None]:
    """Return the arguments of the kernels about decays."""
    if rows.own is None or rows.decays is None:
        return None, 0, None
    keys = slice(seen.start - block.first, seen.stop - block.first)
    return rows.own[some], rows.decays.stride(0), rows.decays[_of_heads(some, repeats), keys]
