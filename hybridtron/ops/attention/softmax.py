"""Causal softmax attention with grouped heads (Ainslie et al. 2023, arXiv 2305.13245), an optional sliding window, and
optional sinks: a score per head that joins every softmax and stands for no value.

Queries are taken in blocks, each with only the keys that some query of the block sees: a causal sequence costs little
more than half of the full square, a windowed one grows linearly with its length.

With a sink a query may attend to nothing, which it else does by heaping weight on the first tokens (Xiao et al. 2023,
arXiv 2309.17453); a learned score per head as in gpt-oss (OpenAI 2025, arXiv 2508.10925). The sink takes
exp(sink) / (exp(sink) + Z) of a softmax whose sum is Z, so its outputs shrink by sigmoid(log Z - sink).

Scores may be limited to +-softcap (Gemma 2, arXiv 2408.00118), and may decay with what lies between key and query: with
forget gates f (Lin et al. 2025, arXiv 2503.02130) the sum of log f over the tokens after the key up to the query is
added. Neither exists in PyTorch's fused kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hybridtron.ops.attention.flash_window import FLASH_WINDOW
from hybridtron.ops.attention.fused_shapes import fused_without_values
from hybridtron.ops.attention.native_attention import NativeAttention, takes_native_attention
from hybridtron.ops.attention.query_blocks import BlockAttention, group, mask_of, ungroup
from hybridtron.ops.attention.small_heads import MOST_KEYS, MOST_WIDTH, SmallHeads, takes_small_heads
from hybridtron.ops.attention.tiles import TiledAttention
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
    softcap: float | None = None,
    decays: Tensor | None = None,
) -> Tensor:
    """Compute softmax(scale q k^T) v; a query sees no key after it and, with a window, only the last `window` keys.

    q [b, s, h, d], k and v [b, t, kv, d] with kv dividing h and t >= s: the last query is at the last key. `scale` is
    1 / sqrt(d) by default. sinks [h] are the scores of sinks in the softmaxes. With `softcap` scores x become
    softcap * tanh(x / softcap). `decays` [b, t, h] are sums of log forget gates up to each key; that of the query minus
    that of the key is added to the score, after the cap. They are best in float64: near keys matter, and sums grow.
    Returns [b, s, h, d of v].
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    arguments = (q, k, v, window, scale, sinks)
    if softcap is None and decays is None:
        return select("attention", window, scale, q, k, v, sinks)(*arguments)
    return select("adjusted_attention", window, scale, q, k, v, sinks, decays)(*arguments, softcap, decays)


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None = None,
    scale: float | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
    decays: Tensor | None = None,
) -> Tensor:
    """Compute `attention` by its formula in float64, over the full square of scores and a column of the sinks."""
    num_queries, num_keys, repeats = q.shape[1], k.shape[1], q.shape[2] // k.shape[2]
    q, k, v = q.double(), k.double().repeat_interleave(repeats, 2), v.double().repeat_interleave(repeats, 2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if decays is not None:
        by_head = decays.double().transpose(1, 2)
        scores = scores + by_head[..., -num_queries:, None] - by_head.unsqueeze(2)
    scores = scores + mask_of(QueryBlock(0, num_queries, 0, num_keys, 0, window), scores)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(*scores.shape[:3], 1)], -1)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1)[..., :num_keys], v)


def _plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    scale: float,
    sinks: Tensor | None,
    softcap: float | None = None,
    decays: Tensor | None = None,
    *,
    recomputed: bool = False,
) -> Tensor:
    """Compute the same blocks in differentiable, batchable operations.

    With `recomputed` the backward pass computes each block again, so that no scores are kept.
    """
    kv, dtype = k.shape[2], accumulation_dtype(q)
    keys, values = group(k.to(dtype), kv), group(v.to(dtype), kv)
    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    outputs = []
    for block in query_blocks(q.shape[1], k.shape[1], window):
        of_block = partial(_plain_block, block=block, scale=scale, softcap=softcap)
        arguments = (
            q[:, block.start : block.stop],
            keys[:, block.first : block.last],
            values[:, block.first : block.last],
            sinks,
            None if decays is None else decays[:, block.first : block.last],
        )
        outputs.append(again(of_block, *arguments) if recomputed else of_block(*arguments))
    return torch.cat(outputs, 1).to(q.dtype)


def _plain_block(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    sinks: Tensor | None,
    decays: Tensor | None,
    *,
    block: QueryBlock,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """Compute one block: q [b, queries, h, d], keys and values [b * kv, keys, d], decays [b, keys, h]."""
    batch, heads, dtype = q.shape[0], q.shape[2], keys.dtype
    queries = group(q.to(dtype) * scale, len(keys) // batch)
    scores = queries @ keys.transpose(1, 2)  # [b * kv, h / kv * queries, keys]
    mask = F.pad(mask_of(block, q), (block.masked - block.first, 0)).to(dtype)
    scores = scores.unflatten(1, (-1, block.num_queries))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if decays is not None:
        by_head = (decays - decays[:, block.position - block.first].unsqueeze(1)).transpose(1, 2).to(dtype)
        between = by_head[..., -block.num_queries :].unsqueeze(-1) - by_head.unsqueeze(2)
        scores = scores + between.reshape(scores.shape)
    scores = (scores + mask).flatten(1, 2)
    y = ungroup(scores.softmax(-1) @ values, batch, heads)  # [b, queries, h, d]
    if sinks is None:
        return y
    log_sum = ungroup(scores.logsumexp(-1, keepdim=True), batch, heads)
    return y * torch.sigmoid(log_sum - sinks.to(dtype).unsqueeze(-1))


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


def _native_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, sinks: Tensor | None
) -> Tensor:
    """Call the kernel that keeps no probabilities, or those for the softmax alone between PyTorch's products."""
    if not takes_native_attention(window, q, k, v):
        return _block_attention(q, k, v, window, scale, sinks, native=True)
    sinks = None if sinks is None else sinks.to(accumulation_dtype(q))
    return NativeAttention.apply(q, k, v, scale, sinks, 0.0)


def _tiled_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    window: int | None,
    scale: float,
    sinks: Tensor | None,
    softcap: float | None = None,
    decays: Tensor | None = None,
) -> Tensor:
    """Compute tiles of scores with their own gradient."""
    sinks = None if sinks is None else sinks.to(accumulation_dtype(q)).contiguous()
    if decays is None and takes_native_attention(window, q, k, v):
        return NativeAttention.apply(q, k, v, scale, sinks, softcap or 0.0)
    return TiledAttention.apply(q, k, v, window, scale, sinks, softcap or 0.0, decays)


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
        "C kernels, small heads",
        f"float32 on a CPU, many heads of at most {MOST_WIDTH} channels, at most {MOST_KEYS} keys",
        takes_small_heads,
        SmallHeads.apply,
    ),
    Implementation(
        "C kernels for the softmax",
        "float32 or narrower on a CPU, scale > 0",
        _native,
        _native_attention,
    ),
    otherwise("PyTorch, in blocks of queries", partial(_block_attention, native=False)),
    sample=lambda one: (None, 1.0, *3 * (one.new_ones(1, 1, 1, 8),), None),
)
register(
    "adjusted_attention",
    "attention with capped or decaying scores",
    plain(_plain_attention),
    Implementation("C kernels for the softmax", "float32 or narrower on a CPU, scale > 0", _native, _tiled_attention),
    otherwise("PyTorch, in blocks of queries", partial(_plain_attention, recomputed=True)),
    sample=lambda one: (None, 1.0, *3 * (one.new_ones(1, 1, 1, 8),), None, None),
)
