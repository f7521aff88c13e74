"""The gated delta rule (Yang et al. 2024, arXiv 2412.06464): a fading memory that corrects what a key stands for.

For every head, with state S [n, p], queries and keys [n], values [p], strengths beta_t and decays a_t = exp(g_t):
    S_t = a_t S_{t-1} + beta_t k_t (v_t - a_t S_{t-1}^T k_t)^T,    y_t = S_t^T q_t.
Members of the family differ in three ways:
    * g_t has a value for every key channel (KDA, arXiv 2510.26692), and a_t S is diag(a_t) S;
    * another key p_t in place of k_t reads what is corrected (GDN-2, arXiv 2605.22791: p_t = b_t k_t by channel);
    * it reads the state before its decay, S_{t-1}^T p_t (Comba, arXiv 2506.02475); with one decay per head only.

In a chunk, with c_i the sum of g up to i and S the state before it, the state after token i is
exp(c_i) S + sum_{j <= i} exp(c_i - c_j) k_j u_j^T, where the corrections u solve a triangular system (the paper's UT
transform, section 3.3):
    (I + T) U = beta V - beta exp(c) P S,    T_ij = beta_i p_i . exp(c_i - c_j) k_j for j < i.
Its inverse is made by matmuls from the inverses of its halves, which is forward substitution by blocks. Decays by
channel are applied in halves of halves too (`decayed_scores`). What is read before the decay has c_{i-1} in place of
c_i.
"""

from __future__ import annotations

from functools import partial
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import delta_rule_chunks
from hybridtron.ops.dispatch import otherwise, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.decayed_scores import decayed_scores
from hybridtron.ops.linear_attention.decays import STRONGEST
from hybridtron.ops.linear_attention.triangular import inverse_of_unit_lower
from hybridtron.ops.recurrence import run_steps
from hybridtron.ops.triton import delta_rule as triton_delta_rule
from hybridtron.ops.triton.launch import MAX_BLOCKS, triton_kernels


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    read_key: Tensor | None = None,
    before_decay: bool = False,
) -> Tensor:
    """Compute the gated delta rule over whole sequences from a zero state, by matmuls over chunks.

    q and k [b, s, m, n] with keys of length one at most, v [b, s, h, p] with m dividing h: heads share queries and
    keys. g (not positive) [b, s, h], or [b, s, h, n] by channel; beta [b, s, h]. `read_key` p, like k, reads what is
    corrected in place of k; with `before_decay`, which needs g [b, s, h], from the state before its decay. Returns
    [b, s, h, p]. `chunk_size`, a power of two, is the most tokens a chunk may have and changes speed, not results.
    """
    further = () if read_key is None else (read_key, before_decay)
    return select("gated_delta_rule", q, k, v, g, beta, *further)(q, k, v, g, beta, chunk_size, *further)


class _Chunks(NamedTuple):
    """A sequence in chunks: m groups of r heads each. d is n where decays are by channel, else 1."""

    q: Tensor  # [b, chunks, m, 1, l, n]
    k: Tensor
    p: Tensor
    beta: Tensor  # [b, chunks, m, r, l, 1]
    total: Tensor  # c_i, the sum of g up to i [b, chunks, m, r, l, d]
    seen: Tensor  # of them, that of the state which p reads
    weights: Tensor  # exp(c_i - c_j) for j <= i, else 0; by channel as scores q_i . k_j [b, chunks, m, r, l, l]
    inverse: Tensor  # of I + T
    corrections: Tensor  # of a zero state [b, chunks, m, r, l, p]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        chunk_size: int,
        read_key: Tensor | None = None,
        before_decay: bool = False,
    ) -> _Chunks:
        dtype, seq_len, groups = accumulation_dtype(q), q.shape[1], q.shape[2]
        count, length = delta_rule_chunks(seq_len, chunk_size)
        padding = (0, 0, 0, 0, 0, count * length - seq_len)
        g = g if g.dim() == v.dim() else g.unsqueeze(-1)
        keys = [k] if read_key is None else [k, read_key]
        q, v, g, beta, *keys = (
            F.pad(t.to(dtype), padding).unflatten(1, (-1, length)).transpose(2, 3)
            for t in (q, v, g, beta.unsqueeze(-1), *keys)
        )  # [b, chunks, m or h, l, .]
        q, *keys = (t.unsqueeze(3) for t in (q, *keys))
        k, p = keys[0], keys[-1]
        v, g, beta = (t.unflatten(2, (groups, -1)) for t in (v, g, beta))  # [b, chunks, m, r, l, .]
        total = g.clamp_min(STRONGEST).cumsum(-2)
        seen = F.pad(total[..., :-1, :], (0, 0, 1, 0)) if before_decay else total
        weights, system = _weights(q, k, p, beta, total, seen)
        inverse = inverse_of_unit_lower(system.tril(-1))
        return cls(q, k, p, beta, total, seen, weights, inverse, inverse @ (beta * v))

    def read(self, corrections: Tensor) -> Tensor:
        """Return what each token reads of its own chunk [b, chunks, m, r, l, p]."""
        by_channel = self.total.shape[-1] > 1
        scores = self.weights if by_channel else self.weights * (self.q @ self.k.transpose(-1, -2))
        return scores @ corrections


def _weights(q: Tensor, k: Tensor, p: Tensor, beta: Tensor, total: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the `weights` of chunks, and T with anything on and above its diagonal; both [b, chunks, m, r, l, l]."""
    if total.shape[-1] > 1:
        read = beta * p
        scores, system = decayed_scores(torch.stack([q.expand_as(read), read]), k, total)
        return scores, system
    decays = _decays_between(total, total)
    between = decays if seen is total else _decays_between(seen, total)
    return decays, beta * between * (p @ k.transpose(-1, -2))


def _decays_between(total: Tensor, earlier: Tensor) -> Tensor:
    """Return exp(total_i - earlier_j) for j <= i, else 0: two of [..., l, 1] -> [..., l, l]."""
    later = torch.ones(total.shape[-2], total.shape[-2], dtype=torch.bool, device=total.device).triu(1)
    return (total - earlier.transpose(-1, -2)).masked_fill(later, -torch.inf).exp()


def _joined(y: Tensor, like: Tensor) -> Tensor:
    """Map [b, chunks, m, r, l, p] to [b, s, h, p], with the tokens and the dtype of `like`."""
    return y.flatten(2, 3).transpose(2, 3).flatten(1, 2)[:, : like.shape[1]].to(like.dtype)


def _in_chunks(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, chunk_size: int, *read_key: Any) -> Tensor:
    """Compute `gated_delta_rule` in PyTorch."""
    chunks = _Chunks.of(q, k, v, g, beta, chunk_size, *read_key)
    total, corrections = chunks.total, chunks.corrections
    if total.shape[1] > 1:
        read = chunks.beta * chunks.seen.exp() * chunks.p
        known = chunks.inverse[:, 1:] @ read[:, 1:]  # times the state: what it already says
        carry = total[:, :-1, ..., -1:, :]
        faded = (chunks.k[:, :-1] * (carry - total[:, :-1]).exp()).transpose(-1, -2)
        first, *rest = corrections.unbind(1)
        solved, states = [first], [faded[:, 0] @ first]
        kept = carry[:, 1:].exp().transpose(-1, -2)
        per_chunk = (known.unbind(1), rest, faded[:, 1:].unbind(1), kept.unbind(1))
        for known_keys, correction, fading, decay in zip_longest(*per_chunk):
            solved.append(correction - known_keys @ states[-1])
            if fading is not None:
                states.append(decay * states[-1] + fading @ solved[-1])
        corrections = torch.stack(solved, 1)
    y = chunks.read(corrections)
    if total.shape[1] > 1:
        carried = (chunks.q[:, 1:] * total[:, 1:].exp()) @ torch.stack(states, 1)
        y = torch.cat([y[:, :1], y[:, 1:] + carried], 1)
    return _joined(y, v)


def gated_delta_rule_prefill(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    read_key: Tensor | None = None,
    before_decay: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute `gated_delta_rule` from state [b, h, n, p]; returns y [b, s, h, p] and the state after the last token."""
    chunks = _Chunks.of(q, k, v, g, beta, chunk_size, read_key, before_decay)
    total = chunks.total
    known = chunks.inverse @ (chunks.beta * chunks.seen.exp() * chunks.p)
    carry = total[..., -1:, :]
    faded = (chunks.k * (carry - total).exp()).transpose(-1, -2)
    memory, solved, states = state.unflatten(1, (q.shape[2], -1)), [], []
    kept = carry.exp().transpose(-1, -2)
    per_chunk = (known.unbind(1), chunks.corrections.unbind(1), faded.unbind(1), kept.unbind(1))
    for known_keys, correction, fading, decay in zip(*per_chunk, strict=True):
        states.append(memory)
        solved.append(correction - known_keys @ memory)
        memory = decay * memory + fading @ solved[-1]
    y = chunks.read(torch.stack(solved, 1)) + (chunks.q * total.exp()) @ torch.stack(states, 1)
    return _joined(y, v), memory.flatten(1, 2)


def gated_delta_rule_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    read_key: Tensor | None = None,
    before_decay: bool = False,
) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    state = q.new_zeros(q.shape[0], v.shape[2], q.shape[3], v.shape[3])
    step = partial(gated_delta_rule_step, before_decay=before_decay)
    return run_steps(step, state, q, k, v, g, beta, *(() if read_key is None else (read_key,)))[0]


def gated_delta_rule_step(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    read_key: Tensor | None = None,
    before_decay: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, n, p], q, k and `read_key` [b, m, n], v [b, h, p], g [b, h] or [b, h, n], beta
    [b, h].

    Returns y [b, h, p] and the state.
    """
    repeats, value, decay = v.shape[1] // q.shape[1], v.to(state.dtype), g.to(state.dtype).exp()
    keys = [k] if read_key is None else [k, read_key]
    query, *keys = (t.to(state.dtype).repeat_interleave(repeats, 1) for t in (q, *keys))  # [b, h, n]
    faded = (decay if decay.dim() == v.dim() else decay.unsqueeze(-1)).unsqueeze(-1) * state
    recalled = (keys[-1].unsqueeze(-2) @ (state if before_decay else faded)).squeeze(-2)
    correction = beta.to(state.dtype).unsqueeze(-1) * (value - recalled)
    state = faded + keys[0].unsqueeze(-1) * correction.unsqueeze(-2)
    return (query.unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


register(
    "gated_delta_rule",
    "gated delta rule",
    triton_kernels(
        triton_delta_rule.gated_delta_rule,
        f"one decay per head, no read key, keys of at most {triton_delta_rule.MAX_KEY_DIM} channels, "
        f"at most {MAX_BLOCKS} sequences times heads",
        lambda q, k, v, g, beta, *read_key: (
            g.dim() == 3
            and not read_key
            and q.shape[-1] <= triton_delta_rule.MAX_KEY_DIM
            and v.shape[0] * v.shape[2] <= MAX_BLOCKS
        ),
    ),
    otherwise("PyTorch, in chunks", _in_chunks),
    sample=lambda one: (*3 * (one.new_ones(1, 1, 1, 8),), *2 * (one.new_ones(1, 1, 1),)),
)
