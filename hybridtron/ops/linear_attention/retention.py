"""Linear attention whose state fades by a constant factor per head: retention (Sun et al. 2023, RetNet, arXiv
2307.08621) and lightning attention (Qin et al. 2024, arXiv 2401.04658).

For every head, with state S [n, p], queries and keys [n], values [p] and the decay a = exp(g) in (0, 1]:
    S_t = a S_{t-1} + k_t v_t^T,    y_t = S_t^T q_t.
In chunks, token i sees token j <= i of its chunk by a^(i - j) q_i . k_j and earlier chunks through their S. All powers
are those of token distances, the same in every chunk and sequence.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import chunks_of
from hybridtron.ops.dispatch import always, register
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.recurrence import run_steps


def retention(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, chunk_size: int) -> Tensor:
    """Compute retention over whole sequences from a zero state, by matmuls over chunks.

    q and k [b, s, h, n]; v [b, s, h, p]; log_decay [h], not positive, constants that get no gradient. Returns
    [b, s, h, p]. `chunk_size` is the most tokens a chunk may have and changes speed, not results. Its matmul FLOPs are
    `linear_attention_flops` without a sum of weights.
    """
    dtype, out_dtype, seq_len = accumulation_dtype(q), v.dtype, q.shape[1]
    count, length = chunks_of(seq_len, chunk_size)
    padding = (0, 0, 0, 0, 0, count * length - seq_len)
    q, k, v = (F.pad(t.to(dtype), padding).unflatten(1, (-1, length)).transpose(2, 3) for t in (q, k, v))
    decay, tokens = log_decay.to(dtype).view(-1, 1, 1), torch.arange(length, device=q.device)
    lags = tokens.unsqueeze(1) - tokens
    weights = (decay * lags).masked_fill(lags < 0, -torch.inf).exp()  # [h, l, l]
    y = (weights * (q @ k.transpose(-1, -2))) @ v
    if count > 1:
        steps = tokens.unsqueeze(1)  # [l, 1]
        faded = k[:, :-1] * (decay * (length - 1 - steps)).exp()
        first, *rest = (faded.transpose(-1, -2) @ v[:, :-1]).unbind(1)  # [b, h, n, p]
        states, chunk_decay = [first], (decay * length).exp()
        for new in rest:
            states.append(torch.addcmul(new, chunk_decay, states[-1]))
        carried = (q[:, 1:] * (decay * (steps + 1)).exp()) @ torch.stack(states, 1)
        y = torch.cat([y[:, :1], y[:, 1:] + carried], 1)
    return y.transpose(2, 3).flatten(1, 2)[:, :seq_len].to(out_dtype)


def retention_reference(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """Compute the recurrence itself, token by token in float64."""
    state = k.new_zeros(k.shape[0], *k.shape[2:], v.shape[-1])
    return run_steps(partial(retention_step, log_decay=log_decay), state, q, k, v)[0]


def retention_step(state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, n, p], q and k [b, h, n], v [b, h, p]; return y [b, h, p] and the state."""
    query, key, value, decay = (t.to(state.dtype) for t in (q, k, v, log_decay))
    state = decay.exp().view(-1, 1, 1) * state + key.unsqueeze(-1) * value.unsqueeze(-2)
    return (query.unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


def retention_prefill(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `retention` from state [b, h, n, p]; return y [b, s, h, p] and the state after the last token."""
    query, key, value, decay = (t.to(state.dtype) for t in (q, k, v, log_decay))
    steps = torch.arange(q.shape[1], device=q.device).view(-1, 1, 1)  # [s, 1, 1]
    decay = decay.view(-1, 1)
    carried = torch.einsum("bshn,bhnp->bshp", query * (decay * (steps + 1)).exp(), state)
    added = torch.einsum("bshn,bshp->bhnp", key * (decay * (len(steps) - 1 - steps)).exp(), value)
    y = retention(query, key, value, log_decay, chunk_size) + carried
    return y.to(v.dtype), torch.addcmul(added, (decay * len(steps)).exp().unsqueeze(-1), state)


register("retention", "retention", always("PyTorch, in chunks", retention))
