"""RWKV-7's state (Peng et al. 2025, arXiv 2503.14456): a delta rule whose transition is diagonal plus low rank.

For every head, with state S [n, p], log decays g_t in [-0.61, 0]^n, vectors a_t and b_t [n], keys and queries [n] and
values [p]:
    S_t = diag(exp(g_t)) S_{t-1} + b_t (S_{t-1}^T a_t)^T + k_t v_t^T,    y_t = S_t^T q_t.

In a chunk, with c_i the sum of g up to i and S the state before it, u_i = S_{i-1}^T a_i solve a triangular system:
    u_i = (a_i exp(c_{i-1}))^T S + sum_{j < i} (a_i exp(c_{i-1} - c_j)) . b_j u_j + (...) . k_j v_j,
and S_i is exp(c_i) S + sum_{j <= i} exp(c_i - c_j) (b_j u_j^T + k_j v_j^T). Scores are products of a exp(c - m) and
b exp(m - c) with m the c in the middle of the chunk. The paper's decays are at least exp(-0.6065), so that in 64 tokens
these factors stay below exp(20) and their products, of which those for later tokens are dropped, below exp(39).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import delta_rule_chunks
from hybridtron.ops.dispatch import always, register
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.triangular import inverse_of_unit_lower
from hybridtron.ops.recurrence import run_steps


def rwkv7(q: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, chunk_size: int) -> Tensor:
    """Compute the recurrence over whole sequences from a zero state, by matmuls over chunks.

    q, k, a, b and g, log decays in [-0.61, 0], [b, s, h, n]; v [b, s, h, p]. Returns [b, s, h, p]. `chunk_size`, a
    power of two up to 64, is the most tokens a chunk may have and changes speed, not results. Decays are taken relative
    to the middle of a chunk, so that those of its first half reach outputs before them, in rounding alone. Its matmul
    FLOPs are `rwkv7_flops`.
    """
    return _Chunks.of(q, g, k, v, a, b, chunk_size).run(None)[0][:, : v.shape[1]].to(v.dtype)


def rwkv7_prefill(
    state: Tensor, q: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `rwkv7` from state [b, h, n, p]; return y [b, s, h, p] and the state after the last token."""
    y, state = _Chunks.of(q, g, k, v, a, b, chunk_size).run(state)
    return y[:, : v.shape[1]].to(v.dtype), state


class _Chunks(NamedTuple):
    """A sequence in chunks of l tokens; what stands side by side is that of b and u, then that of k and v."""

    values: Tensor  # [b, chunks, h, l, p]
    scores: Tensor  # of queries for b and k [b, chunks, h, l, 2 l]
    corrections: Tensor  # u of a zero state [b, chunks, h, l, p]
    inverse: Tensor  # of the triangular system [b, chunks, h, l, l]
    readers: Tensor  # a exp(c_{i-1}) [b, chunks, h, l, n]
    queries: Tensor  # q exp(c_i) [b, chunks, h, l, n]
    writers: Tensor  # b and k, faded to the end of the chunk [b, chunks, h, n, 2 l]
    kept: Tensor  # of the state, over the chunk [b, chunks, h, n, 1]

    @classmethod
    def of(cls, q: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, chunk_size: int) -> _Chunks:
        dtype, seq_len = accumulation_dtype(q), q.shape[1]
        count, length = delta_rule_chunks(seq_len, chunk_size)
        padding = (0, 0, 0, 0, 0, count * length - seq_len)
        q, g, k, v, a, b = (
            F.pad(t.to(dtype), padding).unflatten(1, (-1, length)).transpose(2, 3) for t in (q, g, k, v, a, b)
        )  # [b, chunks, h, l, .]
        total = g.cumsum(-2)
        middle = total[..., length // 2 - 1 : length // 2, :].detach()  # drops out of every product
        fading = (middle - total).exp()
        written = torch.cat([b * fading, k * fading], -2)
        before, after = (total - g - middle).exp(), (total - middle).exp()
        from_a, from_q = a * before, q * after
        seen = torch.cat([from_a, from_q], -2) @ written.transpose(-1, -2)  # [b, chunks, h, 2 l, 2 l]
        earlier, up_to_now = seen.split(length, -2)
        (to_b, to_k), scores = earlier.chunk(2, -1), up_to_now.unflatten(-1, (2, length))
        inverse = inverse_of_unit_lower(-to_b.tril(-1))
        corrections = inverse @ (to_k.tril(-1) @ v)
        scores = scores.transpose(-2, -3).tril().transpose(-2, -3).flatten(-2)
        since, end = middle.exp(), total[..., -1:, :]
        writers = (written * (end - middle).exp()).transpose(-1, -2)
        kept = end.exp().transpose(-1, -2)
        return cls(v, scores, corrections, inverse, from_a * since, from_q * since, writers, kept)

    def run(self, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Go from chunk to chunk, from a zero state or `state` [b, h, n, p]; return y [b, tokens, h, p], padding
        included, and the state after the last chunk."""
        count, first = self.values.shape[1], int(state is None)  # the first chunk that reads a state
        known = (self.inverse[:, first:] @ self.readers[:, first:]).unbind(1)
        per_chunk = (self.corrections.unbind(1), self.values.unbind(1), self.writers.unbind(1), self.kept.unbind(1))
        solved, states = [], []
        for i, (correction, values, writers, kept) in enumerate(zip(*per_chunk, strict=True)):
            both = torch.cat([correction if state is None else correction + known[i - first] @ state, values], -2)
            solved.append(both)
            if state is not None:
                states.append(state)
            if first and i == count - 1:
                break  # nothing reads the state after it
            state = writers @ both if state is None else torch.addcmul(writers @ both, kept, state)
        y = self.scores @ torch.stack(solved, 1)
        if states:
            carried = self.queries[:, first:] @ torch.stack(states, 1)
            y = torch.cat([y[:, :first], y[:, first:] + carried], 1)
        return y.transpose(2, 3).flatten(1, 2), y if state is None else state


def rwkv7_reference(q: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    return run_steps(rwkv7_step, q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1]), q, g, k, v, a, b)[0]


def rwkv7_step(
    state: Tensor, q: Tensor, g: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, n, p], q, g, k, a and b [b, h, n], v [b, h, p]; return y [b, h, p] and the
    state."""
    query, decay, key, value, reader, writer = (t.to(state.dtype) for t in (q, g, k, v, a, b))
    read = reader.unsqueeze(-2) @ state  # [b, h, 1, p]
    added = writer.unsqueeze(-1) * read + key.unsqueeze(-1) * value.unsqueeze(-2)
    state = torch.addcmul(added, decay.exp().unsqueeze(-1), state)
    return (query.unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


register("rwkv7", "rwkv7", always("PyTorch, in chunks", rwkv7))
