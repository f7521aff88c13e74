"""RWKV-6's weighted key-value state (Peng et al. 2024, arXiv 2404.05892, section 4.2): a decay for every key channel.

For every head, with state S [n, p], decays w_t in (0, 1]^n and the bonus u of the current token:
    y_t = r_t (S_{t-1} + diag(u) k_t v_t^T),    S_t = diag(w_t) S_{t-1} + k_t v_t^T.

S_{t-1} is what gated linear attention has at t of keys, values and decays that come one token later, so the sequence
form is that of `gla`, and the current token is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.dispatch import always, register
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.gla import gla, gla_prefill
from hybridtron.ops.recurrence import run_steps


def rwkv6(r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, chunk_size: int) -> Tensor:
    """Compute the recurrence over whole sequences from a zero state, by matmuls over chunks.

    r, k and log_w (not positive) [b, s, h, n]; v [b, s, h, p]; u [h, n]. Returns y [b, s, h, p] in the dtype of v,
    computed in float32 (float64 for float64 inputs). `chunk_size`, a power of two, is the most tokens a chunk may have
    and changes speed, not results. Its matmul FLOPs are `gla_flops`.
    """
    dtype = accumulation_dtype(v)
    r, k, v_wide = (t.to(dtype) for t in (r, k, v))
    bonus = (r * u.to(dtype) * k).sum(-1, keepdim=True) * v_wide
    k_before, v_before, decays_before = _one_later(k, v_wide, log_w.to(dtype))
    return (gla(r, k_before, v_before, decays_before, chunk_size) + bonus).to(v.dtype)


def _one_later(*sequences: Tensor) -> Iterator[Tensor]:
    """Yield each [b, s, h, .] one token later, with zeros in front."""
    return (F.pad(t[:, :-1], (0, 0, 0, 0, 1, 0)) for t in sequences)


def rwkv6_reference(
    r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence, token by token in float64; return y [b, s, h, p] and the final state [b, h, n, p]."""
    state = r.new_zeros(r.shape[0], *u.shape, v.shape[-1]) if initial_state is None else initial_state
    return run_steps(partial(rwkv6_step, u=u), state, r, k, v, log_w)


def rwkv6_step(state: Tensor, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, n, p], r, k and log_w [b, h, n], v [b, h, p]; return y [b, h, p] and state."""
    receptance, key, value, decay, bonus = (t.to(state.dtype) for t in (r, k, v, log_w, u))
    added = key.unsqueeze(-1) * value.unsqueeze(-2)
    y = (receptance.unsqueeze(-2) @ (state + bonus.unsqueeze(-1) * added)).squeeze(-2)
    return y.to(v.dtype), decay.exp().unsqueeze(-1) * state + added


def rwkv6_prefill(
    state: Tensor, r: Tensor, k: Tensor, v: Tensor, log_w: Tensor, u: Tensor, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `rwkv6` from state [b, h, n, p]; returns y [b, s, h, p] and the state after the last token."""
    r, k, v_wide, decays = (t.to(state.dtype) for t in (r, k, v, log_w))
    bonus = (r * u.to(state.dtype) * k).sum(-1, keepdim=True) * v_wide
    k_before, v_before, decays_before = _one_later(k, v_wide, decays)
    y, state = gla_prefill(state, r, k_before, v_before, decays_before, chunk_size)  # state: without the last token
    state = decays[:, -1].exp().unsqueeze(-1) * state + k[:, -1].unsqueeze(-1) * v_wide[:, -1].unsqueeze(-2)
    return (y + bonus).to(v.dtype), state


register("rwkv6", "rwkv6", always("PyTorch, in chunks", rwkv6))
