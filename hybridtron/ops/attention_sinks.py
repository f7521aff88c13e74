"""Softmax attention with sinks: a score per head that joins every softmax and stands for no value.

A query may so attend to nothing, which it else does by heaping weight on the first tokens (Xiao et al. 2023, arXiv
2309.17453); a learned score per head as in gpt-oss (OpenAI 2025, arXiv 2508.10925). The sink takes
exp(sink) / (exp(sink) + Z) of a softmax whose sum is Z, so its outputs shrink by sigmoid(log Z - sink).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.attention import _group, _mask, _query_blocks, _ungroup
from hybridtron.ops.precision import accumulation_dtype


def attention_with_sinks(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """`attention` of q [b, s, h, d] over k and v [b, t, kv, d], with the scores sinks [h] in the softmaxes.

    It takes the matmuls of `attention` without a kernel of its own: its cost in time is about twice as high.
    """
    batch, heads, kv, dtype = q.shape[0], q.shape[2], k.shape[2], accumulation_dtype(q)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
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


def attention_with_sinks_reference(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor, window: int | None = None, scale: float | None = None
) -> Tensor:
    """`attention_with_sinks` in float64 as attention whose scores have one more column, dropped after the softmax."""
    num_queries, num_keys, repeats = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 2), v.double().repeat_interleave(repeats, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    queries = torch.arange(num_keys - num_queries, num_keys, device=q.device).unsqueeze(1)
    keys = torch.arange(num_keys, device=q.device)
    hidden = keys > queries if window is None else (keys > queries) | (keys <= queries - window)
    column = sinks.double()[:, None, None].expand(*scores.shape[:3], 1)
    joined = torch.cat([scores.masked_fill(hidden, -torch.inf), column], -1)
    return torch.einsum("bhqk,bkhd->bqhd", joined.softmax(-1)[..., :-1], v)
