"""Gated linear attention (Yang et al. 2023, arXiv 2312.06635): linear attention whose state fades channel by channel.

For every head, with state S [n, p], queries and keys [n], values [p] and decays a_t = exp(g_t) in (0, 1]^n:
    S_t = diag(a_t) S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t.

In a chunk, with c_i the sum of g up to i, token i sees token j <= i by sum_n q_in k_jn exp(c_in - c_jn), computed in
halves of halves (`decayed_scores`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import GLA_BLOCK, binary_chunks
from hybridtron.ops.dispatch import otherwise, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.decayed_scores import faded_halves, small_scores
from hybridtron.ops.linear_attention.decays import STRONGEST
from hybridtron.ops.recurrence import run_steps, sums_around
from hybridtron.ops.triton import gla as triton_gla
from hybridtron.ops.triton.launch import MAX_BLOCKS, triton_kernels


def gla(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk_size: int) -> Tensor:
    """Compute gated linear attention over whole sequences from a zero state, by matmuls over chunks.

    q, k and g [b, s, h, n], g being the logarithms of the decays (not positive); v [b, s, h, p]. Returns [b, s, h, p].
    `chunk_size`, a power of two, is the most tokens a chunk may have and changes speed, not results.
    """
    return select("gla", q, k, v, g)(q, k, v, g, chunk_size)


def _halved_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk_size: int) -> Tensor:
    """Compute `gla` in PyTorch."""
    dtype, out_dtype, seq_len = accumulation_dtype(q), v.dtype, q.shape[1]
    count, length = binary_chunks(seq_len, chunk_size)
    padding = (0, 0, 0, 0, 0, count * length - seq_len)
    q, k, v, g = (F.pad(t.to(dtype), padding).unflatten(1, (-1, length)).transpose(2, 3) for t in (q, k, v, g))
    total = g.clamp_min(STRONGEST).cumsum(-2)  # [b, chunks, h, l, n]
    y = _within_chunks(q, k, v, total)
    if count * length == 1:
        y = y + 0 * total.sum()  # a token alone sees no decay: its gradient is zero, not missing
    if count > 1:
        carry = total[..., -1, :]  # [b, chunks, h, n]
        faded = k[:, :-1] * (carry[:, :-1].unsqueeze(-2) - total[:, :-1]).exp()
        added = faded.transpose(-1, -2) @ v[:, :-1]  # [b, chunks - 1, h, n, p]
        first, *rest = added.unbind(1)
        states = [first]
        for new, decay in zip(rest, carry[:, 1:-1].exp().unsqueeze(-1).unbind(1), strict=True):
            states.append(torch.addcmul(new, decay, states[-1]))
        carried = (q[:, 1:] * total[:, 1:].exp()) @ torch.stack(states, 1)
        y = torch.cat([y[:, :1], y[:, 1:] + carried], 1)
    return y.transpose(2, 3).flatten(1, 2)[:, :seq_len].to(out_dtype)


def _within_chunks(q: Tensor, k: Tensor, v: Tensor, total: Tensor) -> Tensor:
    """Compute attention within each chunk: q, k and total [..., l, n], v [..., l, p] -> [..., l, p]."""
    length = q.shape[-2]
    size = min(GLA_BLOCK, length)
    qs, ks, vs, sums = (t.unflatten(-2, (-1, size)) for t in (q, k, v, total))  # [..., blocks, size, .]
    y = (small_scores(qs, ks, sums) @ vs).flatten(-3, -2)
    while size < length:
        qs, ks, vs, sums = (t.unflatten(-2, (-1, 2, size)) for t in (q, k, v, total))  # [..., pairs, 2, size, .]
        queries, keys = faded_halves(qs, ks, sums)
        seen = (queries @ keys.transpose(-1, -2)) @ vs[..., 0, :, :]  # [..., pairs, size, p]
        first, second = y.unflatten(-2, (-1, 2, size)).unbind(-3)
        y = torch.stack([first, second + seen], -3).flatten(-4, -2)
        size *= 2
    return y


def gla_reference(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    return run_steps(gla_step, q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1]), q, k, v, g)[0]


def gla_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, n, p], q, k and g [b, h, n], v [b, h, p]; returns y [b, h, p] and the state."""
    query, key, value, log_decay = (t.to(state.dtype) for t in (q, k, v, g))
    state = log_decay.exp().unsqueeze(-1) * state + key.unsqueeze(-1) * value.unsqueeze(-2)
    return (query.unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


def gla_prefill(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Compute `gla` from state [b, h, n, p]; returns y [b, s, h, p] and the state after the last token."""
    query, key, value, log_decays = (t.to(state.dtype) for t in (q, k, v, g))
    before, after = sums_around(log_decays)
    carried = torch.einsum("bshn,bhnp->bshp", query * before.exp(), state)
    y = gla(q, k, v, g, chunk_size) + carried
    added = torch.einsum("bshn,bshp->bhnp", key * after.exp(), value)
    return y.to(v.dtype), torch.addcmul(added, before[:, -1].exp().unsqueeze(-1), state)


register(
    "gla",
    "gla",
    triton_kernels(
        triton_gla.gla,
        f"at most {MAX_BLOCKS} sequences times heads",
        lambda q, *_: q.shape[0] * q.shape[2] <= MAX_BLOCKS,
    ),
    otherwise("PyTorch, in chunks", _halved_chunks),
    sample=lambda one: 4 * (one.new_ones(1, 1, 1, 8),),
)
