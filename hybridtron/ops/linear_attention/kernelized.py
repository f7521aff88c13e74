"""Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): attention whose weights are inner products.

With features of queries and keys, q and k [n], and values v [p], a head keeps S = sum_j k_j v_j^T and z = sum_j k_j:
    y_t = S_t^T q_t,    or normalised    y_t = S_t^T q_t / (z_t . q_t + eps).
In chunks, the tokens of a chunk see each other by a masked product and earlier chunks through their S and z.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import chunks_of
from hybridtron.ops.dispatch import always, register
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.recurrence import run_steps

EPS = 1e-6  # added to the sum of the weights


def linear_attention(q: Tensor, k: Tensor, v: Tensor, chunk_size: int, normalize: bool, eps: float = EPS) -> Tensor:
    """Compute linear attention over whole sequences from a zero state, by matmuls over chunks.

    q and k [b, s, h, n] are features, v [b, s, h, p]; returns [b, s, h, p]. `chunk_size` is the most tokens a chunk may
    have and changes speed, not results.
    """
    dtype, out_dtype, seq_len, width = accumulation_dtype(q), v.dtype, q.shape[1], v.shape[-1]
    count, length = chunks_of(seq_len, chunk_size)
    padding = (0, 0, 0, 0, 0, count * length - seq_len)
    q, k, v = (F.pad(t.to(dtype), padding).unflatten(1, (-1, length)).transpose(2, 3) for t in (q, k, v))
    if normalize:
        v = F.pad(v, (0, 1), value=1.0)  # the sum of the weights is one more channel: [b, chunks, h, l, p + 1]
    y = (q @ k.transpose(-1, -2)).tril() @ v
    if count > 1:
        states = (k[:, :-1].transpose(-1, -2) @ v[:, :-1]).cumsum(1)  # before every chunk but the first
        y = torch.cat([y[:, :1], y[:, 1:] + q[:, 1:] @ states], 1)
    if normalize:
        y = y[..., :width] / (y[..., width:] + eps)
    return y.transpose(2, 3).flatten(1, 2)[:, :seq_len].to(out_dtype)


def linear_attention_reference(q: Tensor, k: Tensor, v: Tensor, normalize: bool) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    state = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1] + normalize)
    return run_steps(partial(linear_attention_step, normalize=normalize), state, q, k, v)[0]


def linear_attention_step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, normalize: bool, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Compute one token: q and k [b, h, n], v [b, h, p]; returns y [b, h, p] and the state.

    The state [b, h, n, p] is S; normalised, [b, h, n, p + 1] with z as its last column.
    """
    wide, query = v.to(state.dtype), q.to(state.dtype).unsqueeze(-2)
    if normalize:
        wide = F.pad(wide, (0, 1), value=1.0)
    state = state + k.to(state.dtype).unsqueeze(-1) * wide.unsqueeze(-2)
    y = (query @ state).squeeze(-2)
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + eps)
    return y.to(v.dtype), state


def linear_attention_prefill(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, chunk_size: int, normalize: bool, eps: float = EPS
) -> tuple[Tensor, Tensor]:
    """Compute `linear_attention` from the state of `linear_attention_step`; returns y [b, s, h, p] and the state."""
    query, key, wide = (t.to(state.dtype) for t in (q, k, v))
    if normalize:
        wide = F.pad(wide, (0, 1), value=1.0)
    y = linear_attention(query, key, wide, chunk_size, normalize=False)
    y = y + torch.einsum("bshn,bhnp->bshp", query, state)
    if normalize:
        y = y[..., :-1] / (y[..., -1:] + eps)
    return y.to(v.dtype), state + torch.einsum("bshn,bshp->bhnp", key, wide)


def taylor_features(x: Tensor) -> Tensor:
    """Map [..., d] to [..., 1 + d + d^2], whose inner products are 1 + s + s^2 / 2 for s = x . y / sqrt(d).

    The second-order expansion of softmax's exponential (Arora et al. 2024, Based, arXiv 2402.18668).
    """
    x = x.to(accumulation_dtype(x)) * x.shape[-1] ** -0.25
    square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) / math.sqrt(2)
    return torch.cat([torch.ones_like(x[..., :1]), x, square], -1)


def elu_features(x: Tensor) -> Tensor:
    """Compute elu(x) + 1, positive (Katharopoulos et al. 2020)."""
    return F.elu(x.to(accumulation_dtype(x))) + 1


register("linear_attention", "linear attention", always("PyTorch, in chunks", linear_attention))
