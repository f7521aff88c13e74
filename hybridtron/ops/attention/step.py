"""Attention and rotary positions of one token of every sequence, as generation needs them."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.attention.rotary import Scaling, rotary_tables
from hybridtron.ops.elementwise.precision import accumulation_dtype

_FEWEST_POSITIONS = 256  # of a table


def attention_step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    sinks: Tensor | None = None,
    visible: Tensor | None = None,
    softcap: float | None = None,
    decays: Tensor | None = None,
) -> Tensor:
    """Compute `attention` of one query a sequence: q [b, h, d], k [b, kv, t, d] and v [b, kv, t, e] -> [b, h, e].

    `visible` [b, t] says which keys a sequence has; by default all. `decays` [b, t, h] are added to the scores: that of
    the query minus that of each key.
    """
    kv, scale = k.shape[1], q.shape[-1] ** -0.5 if scale is None else scale
    queries = q.unflatten(1, (kv, -1))  # the heads of a group are rows of one matrix
    mask = None if visible is None else visible[:, None, None]
    if decays is not None:
        decays = decays.transpose(1, 2).unflatten(1, (kv, -1))  # [b, kv, h / kv, t]
    if sinks is None and softcap is None:
        if decays is not None:
            mask = decays.to(q.dtype) if mask is None else decays.to(q.dtype).masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(queries, k, v, attn_mask=mask, scale=scale).flatten(1, 2)
    dtype = accumulation_dtype(q)
    scores = (queries.to(dtype) * scale) @ k.to(dtype).transpose(-1, -2)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if decays is not None:
        scores = scores + decays.to(dtype)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    if sinks is None:
        return (scores.softmax(-1) @ v.to(dtype)).flatten(1, 2).to(q.dtype)
    share = torch.sigmoid(scores.logsumexp(-1, keepdim=True) - sinks.to(dtype).view(kv, -1, 1))
    return (share * (scores.softmax(-1) @ v.to(dtype))).flatten(1, 2).to(q.dtype)


def rotate_step(
    x: Tensor, position: int | Tensor, seen: int, rotary_dim: int, base: float, scaling: Scaling | None = None
) -> Tensor:
    """Rotate one token a sequence, x [b, h, d], by the angles of its position, or of that of each [b]; at most `seen`.

    See `apply_rotary`.
    """
    positions = max(_FEWEST_POSITIONS, 1 << seen.bit_length())
    cos, sin = (table[position] for table in _tables(positions, rotary_dim, base, x.device, scaling))
    if isinstance(position, Tensor):
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)  # [b, 1, rotary_dim]
    turned = x if rotary_dim == x.shape[-1] else x[..., :rotary_dim]
    first, second = turned.chunk(2, -1)
    y = (turned * cos + torch.cat([second, first], -1) * sin).to(x.dtype)
    return y if rotary_dim == x.shape[-1] else torch.cat([y, x[..., rotary_dim:]], -1)


@lru_cache(maxsize=8)
def rotary_table(positions: int, rotary_dim: int, base: float, scaling: Scaling | None = None) -> tuple[Tensor, Tensor]:
    """Return cosines and sines [positions, rotary_dim / 2] of the angles that `rotate_step` turns by, on the CPU."""
    with torch.inference_mode(False):
        return rotary_tables(positions, rotary_dim, base, scaling=scaling)


@lru_cache(maxsize=8)
def _tables(
    positions: int, rotary_dim: int, base: float, device: torch.device, scaling: Scaling | None
) -> tuple[Tensor, Tensor]:
    """Return the factors of a pair's channels, and those of the other channels of the pairs [positions, rotary_dim]."""
    with torch.inference_mode(False):
        cos, sin = rotary_tables(positions, rotary_dim, base, device=device, scaling=scaling)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)
