"""Softmax attention with sinks: a score per head that joins every softmax and stands for no value.

A query may so attend to nothing, which it else does by heaping weight on the first tokens (Xiao et al. 2023, arXiv
2309.17453); a learned score per head as in gpt-oss (OpenAI 2025, arXiv 2508.10925). The sink takes
exp(sink) / (exp(sink) + Z) of a softmax whose sum is Z, so its outputs shrink by sigmoid(log Z - sink).
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.attention.softmax import (
    QueryBlock,
    _Attention,
    _fused_attention,
    _group,
    _mask,
    _query_blocks,
    _ungroup,
)
from hybridtron.ops.dispatch import register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.elementwise.row_blocks import runs

_WIDTHS = 8  # what divides the channels that fused kernels take


def attention_with_sinks(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Compute `attention` of q [b, s, h, d] over k and v [b, t, kv, d], with the scores sinks [h] in the softmaxes.

    Costs the time and memory of `attention`.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return select("attention_with_sinks", scale, q, k, v, sinks)(q, k, v, sinks, window, scale)


def attention_with_sinks_reference(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """Compute `attention_with_sinks` in float64, the sinks being a column of scores dropped after the softmax."""
    num_queries, num_keys, repeats = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 2), v.double().repeat_interleave(repeats, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    queries = torch.arange(num_keys - num_queries, num_keys, device=q.device).unsqueeze(1)
    keys = torch.arange(num_keys, device=q.device)
    hidden = keys > queries if window is None else (keys > queries) | (keys <= queries - window)
    column = sinks.double()[:, None, None].expand(*scores.shape[:3], 1)
    joined = torch.cat([scores.masked_fill(hidden, -torch.inf), column], -1)
    return torch.einsum("bhqk,bkhd->bqhd", joined.softmax(-1)[..., :-1], v)


def _plain_form(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, scale: float) -> Tensor:
    """Compute the blocks of `attention` in differentiable, batchable operations."""
    batch, heads, kv, dtype = q.shape[0], q.shape[2], k.shape[2], accumulation_dtype(q)
    keys, values, sinks = _group(k.to(dtype), kv), _group(v.to(dtype), kv), sinks.to(dtype)
    outputs = []
    for block in _query_blocks(q.shape[1], k.shape[1], window):
        queries = _group(q[:, block.start : block.stop].to(dtype) * scale, kv)
        scores = queries @ keys[:, block.first : block.last].transpose(1, 2)  # [b * kv, h / kv * queries, keys]
        mask = F.pad(_mask(block, q), (block.masked - block.first, 0)).to(dtype)
        scores = (scores.unflatten(1, (-1, block.num_queries)) + mask).flatten(1, 2)
        y = _ungroup(scores.softmax(-1) @ values[:, block.first : block.last], batch, heads)  # [b, queries, h, d]
        log_sum = _ungroup(scores.logsumexp(-1, keepdim=True), batch, heads)
        outputs.append(y * torch.sigmoid(log_sum - sinks.unsqueeze(-1)))
    return torch.cat(outputs, 1).to(q.dtype)


def _fused_form(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, scale: float) -> Tensor:
    """Call PyTorch's fused kernels with one more key in front and one more channel.

    The key has the value zero. In the channel it is one, other keys are zero and queries are their heads' sinks.
    """
    num_queries, num_keys, width, kept = q.shape[1], k.shape[1], q.shape[3], v.shape[3]
    wider = width + _WIDTHS - width % _WIDTHS
    column = (sinks / scale).to(q.dtype).unsqueeze(-1).expand(*q.shape[:3], 1)
    q = F.pad(torch.cat([q, column], -1), (0, wider - width - 1))
    sink = (torch.arange(wider, device=k.device) == width).to(k.dtype).expand(k.shape[0], 1, k.shape[2], -1)
    k = torch.cat([sink, F.pad(k, (0, wider - width))], 1)
    v = F.pad(v, (0, max(0, wider - kept), 0, 0, 1, 0))
    if num_queries == num_keys and (window is None or window >= num_keys):
        # With a query in front as well, whose output is dropped, both are as many.
        return _fused_attention(F.pad(q, (0, 0, 0, 0, 1, 0)), k, v, None, scale)[:, 1:, :, :kept]
    grouped = q.shape[2] != k.shape[2]
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, h, s, d]
    ahead, outputs = num_keys - num_queries, []
    for run in runs(num_queries, num_queries if window is None else window):
        first = 0 if window is None else max(0, run.start + ahead - window + 1)
        block = QueryBlock(run.start, run.stop, first, run.stop + ahead, first, window)
        mask = F.pad(_mask(block, q), (1, 0))
        keys, values = (torch.cat([t[:, :, :1], t[:, :, block.first + 1 : block.last + 1]], 2) for t in (k, v))
        outputs.append(
            F.scaled_dot_product_attention(q[:, :, run], keys, values, attn_mask=mask, scale=scale, enable_gqa=grouped)
        )
    return torch.cat(outputs, 2).transpose(1, 2)[..., :kept]


def _block_form(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None, scale: float, *, native: bool
) -> Tensor:
    """Compute the blocks of `attention` with its own gradient."""
    return _Attention.apply(q, k, v, window, scale, sinks.to(accumulation_dtype(q)).contiguous(), native)


register(
    "attention_with_sinks",
    {
        "plain PyTorch": _plain_form,
        "scaled_dot_product_attention": _fused_form,
        "C kernels for the softmax": partial(_block_form, native=True),
        "PyTorch, in blocks of queries": partial(_block_form, native=False),
    },
)
