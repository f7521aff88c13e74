"""Causal softmax attention with grouped heads (Ainslie et al. 2023, arXiv 2305.13245), an optional sliding window, and
optional sinks: a score per head that joins every softmax and stands for no value.

Queries are taken in blocks, each with only the keys that some query of the block sees: a causal sequence costs little
more than half of the full square, a windowed one grows linearly with its length.

With a sink a query may attend to nothing, which it else does by heaping weight on the first tokens (Xiao et al. 2023,
arXiv 2309.17453); a learned score per head as in gpt-oss (OpenAI 2025, arXiv 2508.10925). The sink takes
exp(sink) / (exp(sink) + Z) of a softmax whose sum is Z, so its outputs shrink by sigmoid(log Z - sink).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.attention.flash_window import FLASH_WINDOW
from hybridtron.ops.attention.fused_shapes import fused_without_values
from hybridtron.ops.attention.query_blocks import BlockAttention, group, mask_of, ungroup
from hybridtron.ops.cuts import QueryBlock, query_blocks, runs
from hybridtron.ops.device import device_type
from hybridtron.ops.dispatch import Implementation, otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype, under_transforms
from hybridtron.ops.native.declarations import PLAIN
from hybridtron.ops.native.library import load

_WIDTHS = 8  # what divides the channels that fused kernels take


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute softmax(scale q k^T) v; a query sees no key after it and, with a window, only the last `window` keys.

    q [b, s, h, d], k and v [b, t, kv, d] with kv dividing h and t >= s: the last query is at the last key. `scale` is
    1 / sqrt(d) by default. sinks [h] are the scores of sinks in the softmaxes. Returns [b, s, h, d of v].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return select("attention", window, scale, q, k, v, sinks)(q, k, v, window, scale, sinks)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute `attention` by its formula in float64, over the full square of scores and a column of the sinks."""
    num_queries, num_keys, repeats = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 2), v.double().repeat_interleave(repeats, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores + mask_of(QueryBlock(0, num_queries, 0, num_keys, 0, window), scores)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:3], 1)], -1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1)[..., :num_keys], v)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, sinks: Tensor | None) -> Tensor:
    """Compute the same blocks in differentiable, batchable operations."""
    batch, heads, kv, dtype = q.shape[0], q.shape[2], k.shape[2], accumulation_dtype(q)
    keys, values = group(k.to(dtype), kv), group(v.to(dtype), kv)
    outputs = []
    for block in query_blocks(q.shape[1], k.shape[1], window):
        queries = group(q[:, block.start : block.stop].to(dtype) * scale, kv)
        scores = queries @ keys[:, block.first : block.last].transpose(1, 2)  # [b * kv, h / kv * queries, keys]
        mask = F.pad(mask_of(block, q), (block.masked - block.first, 0)).to(dtype)
        scores = (scores.unflatten(1, (-1, block.num_queries)) + mask).flatten(1, 2)
        y = ungroup(scores.softmax(-1) @ values[:, block.first : block.last], batch, heads)  # [b, queries, h, d]
        if sinks is not None:
            log_sum = ungroup(scores.logsumexp(-1, keepdim=True), batch, heads)
            y = y * torch.sigmoid(log_sum - sinks.to(dtype).unsqueeze(-1))
        outputs.append(y)
    return torch.cat(outputs, 1).to(q.dtype)


def _fused_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    scale: float,
    sinks: Tensor | None,
    kernel: Callable[..., Tensor] = F.scaled_dot_product_attention,
) -> Tensor:
    """Call PyTorch's fused kernels, which hold no scores in memory.

    Sinks are one more key in front and one more channel. The key has the value zero. In the channel it is one, other
    keys are zero and queries are their heads' sinks.
    """
    if sinks is None:
        return _fused_blocks(q, k, v, window, scale, 0, kernel)
    width, kept = q.shape[3], v.shape[3]
    wider = width + _WIDTHS - width % _WIDTHS
    column = (sinks / scale).to(q.dtype).unsqueeze(-1).expand(*q.shape[:3], 1)
    q = F.pad(torch.cat([q, column], -1), (0, wider - width - 1))
    sink = (torch.arange(wider, device=k.device) == width).to(k.dtype).expand(k.shape[0], 1, k.shape[2], -1)
    k = torch.cat([sink, F.pad(k, (0, wider - width))], 1)
    v = F.pad(v, (0, max(0, wider - kept), 0, 0, 1, 0))
    return _fused_blocks(q, k, v, window, scale, 1, kernel)[..., :kept]


def _fused_blocks(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, front: int, kernel: Callable[..., Tensor]
) -> Tensor:
    """Call the fused kernels once, or with a window once for every `window` queries; all see the `front` first keys."""
    num_queries, num_keys = q.shape[1], k.shape[1] - front
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [b, h, s, d]
    fused = partial(kernel, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    if num_queries == num_keys and (window is None or window >= num_keys):
        # With as many queries in front, whose outputs are dropped, queries and keys are as many.
        q = F.pad(q, (0, 0, front, 0)) if front else q
        return fused(q, k, v, is_causal=True)[:, :, front:].transpose(1, 2)
    ahead, outputs = num_keys - num_queries, []
    for run in runs(num_queries, num_queries if window is None else window):
        first = 0 if window is None else max(0, run.start + ahead - window + 1)
        block = QueryBlock(run.start, run.stop, first, run.stop + ahead, first, window)
        mask = F.pad(mask_of(block, q), (front, 0))
        keys, values = (t[:, :, front + block.first : front + block.last] for t in (k, v))
        if front:
            keys, values = torch.cat([k[:, :, :front], keys], 2), torch.cat([v[:, :, :front], values], 2)
        outputs.append(fused(q[:, :, run], keys, values, attn_mask=mask))
    return torch.cat(outputs, 2).transpose(1, 2)


def _block_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, sinks: Tensor | None, *, native: bool
) -> Tensor:
    """Compute the blocks with their own gradient."""
    sinks = None if sinks is None else sinks.to(accumulation_dtype(q)).contiguous()
    return BlockAttention.apply(q, k, v, window, scale, sinks, native)


def _native(window: int | None, scale: float, q: Tensor, *others: Tensor | None) -> bool:
    """Return whether the kernels can work on scores of these tensors, which are in the dtype of accumulation."""
    fits = all(t is None or (device_type(t.device) == "cpu" and type(t) in PLAIN) for t in (q, *others))
    if scale <= 0 or not fits or accumulation_dtype(q) is not torch.float32:
        return False
    return not under_transforms() and load()[0] is not None


register(
    "attention",
    "attention",
    plain(_plain_attention),
    FLASH_WINDOW,
    Implementation(
        "scaled_dot_product_attention",
        "on CUDA",
        lambda window, scale, q, *_: device_type(q.device) == "cuda",
        _fused_attention,
        partial(_fused_attention, kernel=fused_without_values),
    ),
    Implementation(
        "C kernels for the softmax",
        "float32 or narrower on a CPU, scale > 0",
        _native,
        partial(_block_attention, native=True),
    ),
    otherwise("PyTorch, in blocks of queries", partial(_block_attention, native=False)),
    sample=lambda one: (None, 1.0, *3 * (one.new_ones(1, 1, 1, 8),), None),
)
