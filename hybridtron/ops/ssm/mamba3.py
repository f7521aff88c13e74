"""Mamba-3's selective state space (arXiv 2603.15569): trapezoidal rule, states that rotate, several inputs per state.

For every head, with state S [p, n], step dt_t, log decay a_t, mix m_t in [0, 1], angles phi_t and R(phi) the rotation
of pairs of state elements:
    phi_t = phi_{t-1} + dt_t theta_t,    B'_t = R(phi_t) B_t,    C'_t = R(phi_t) C_t,    U_t = x_t^T B'_t,
    S_t = exp(a_t) (S_{t-1} + (1 - m_t) dt_t U_{t-1}) + m_t dt_t U_t,    y_t = C'_t S_t^T + D x_t.
x_t and y_t are [r, p], B_t and C_t [r, n]: one row per rank, 1 for the form with single inputs and outputs (SISO).

U_t reaches later outputs with two weights, its own m_t dt_t and the next token's (1 - m_{t+1}) dt_{t+1}, which always
come together. So the state that the token finds, without its own input and decay, has one input per token,
    P_t = exp(a_{t-1}) P_{t-1} + w_t U_{t-1},    w_t = m_{t-1} dt_{t-1} + (1 - m_t) dt_t,
    S_t = exp(a_t) P_t + m_t dt_t U_t,
and is that of `ssd` over tokens that are one later.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.linear_attention.decays import STRONGEST
from hybridtron.ops.recurrence import run_steps, sums_around
from hybridtron.ops.ssm.ranked_ssd import ranked_ssd
from hybridtron.ops.ssm.ssd import ssd


class Mamba3State(NamedTuple):
    """Everything that the next token needs of those before it."""

    memory: Tensor  # S [b, h, p, n]
    B: Tensor  # the last token's, rotated [b, h, r, n]
    x: Tensor  # the last token's [b, h, r, p]
    angles: Tensor  # phi in [0, 2 pi), [b, h, k]


def mamba3(
    x: Tensor, dt: Tensor, log_decay: Tensor, mix: Tensor, theta: Tensor, B: Tensor, C: Tensor, D: Tensor,
    chunk_size: int,
) -> Tensor:  # fmt: skip
    """Compute the state space over whole sequences from a zero state, by matmuls over chunks.

    x [b, s, h, r, p]; dt and log_decay, not positive, and mix [b, s, h]; theta [b, s, h, k]; B and C [b, s, h, r, n],
    of which theta rotates the pairs (i, i + n // 2), i < k; D [h]. Returns y [b, s, h, r, p] in the dtype of x.
    `chunk_size` is the most tokens times r in a chunk and changes speed, not results. Steps, decays and angles keep
    their dtype; matmuls take that of x.
    """
    angles = _accumulated(theta, dt)
    keys, queries = _rotated(B, angles, x.dtype), _rotated(C, angles, x.dtype)
    own, ahead = _weights(dt, mix)
    log_decay = log_decay.clamp_min(STRONGEST)
    past = _past(_later(x), ahead, log_decay, _later(keys), queries, chunk_size)
    return (past + _present(x, own, B, C, D)).to(x.dtype)


def mamba3_prefill(
    state: Mamba3State, x: Tensor, dt: Tensor, log_decay: Tensor, mix: Tensor, theta: Tensor, B: Tensor, C: Tensor,
    D: Tensor, chunk_size: int,
) -> tuple[Tensor, Mamba3State]:  # fmt: skip
    """Compute `mamba3` from a state; returns y [b, s, h, r, p] and the state after the last token."""
    angles = _accumulated(theta, dt, state.angles)
    rotated, queries = _rotated(B, angles, x.dtype), _rotated(C, angles, x.dtype)
    own, ahead = _weights(dt, mix)
    log_decay = log_decay.clamp_min(STRONGEST)
    inputs, keys = _later(x, state.x), _later(rotated, state.B)
    past = _past(inputs, ahead, log_decay, keys, queries, chunk_size)
    dtype = state.memory.dtype
    before, after = sums_around(log_decay.to(dtype))  # [b, s, h]
    carried = torch.einsum("bshrn,bhpn->bshrp", queries.to(dtype), state.memory) * before.exp()[..., None, None]
    y = past + carried + _present(x, own, B, C, D)
    weights = (ahead * (log_decay + after).exp()).to(dtype)
    memory = before[:, -1].exp()[..., None, None] * state.memory
    memory = memory + torch.einsum("bshrp,bshrn->bhpn", inputs.to(dtype) * weights[..., None, None], keys.to(dtype))
    last = x[:, -1].to(dtype), rotated[:, -1].to(dtype)
    memory = memory + torch.einsum("bhrp,bhrn->bhpn", last[0] * own[:, -1, :, None, None], last[1])
    return y.to(x.dtype), Mamba3State(memory, last[1], last[0], angles[:, -1].to(dtype))


def mamba3_step(
    state: Mamba3State, x: Tensor, dt: Tensor, log_decay: Tensor, mix: Tensor, theta: Tensor, B: Tensor, C: Tensor,
    D: Tensor,
) -> tuple[Tensor, Mamba3State]:  # fmt: skip
    """Compute one token: x [b, h, r, p], dt, log_decay and mix [b, h], theta [b, h, k], B and C [b, h, r, n].

    Returns y [b, h, r, p] and the state after it.
    """
    dtype = state.memory.dtype
    angles = torch.remainder(state.angles + theta.to(dtype) * dt.to(dtype).unsqueeze(-1), 2 * math.pi)
    inputs, keys, queries = x.to(dtype), _rotated(B, angles, dtype), _rotated(C, angles, dtype)
    before = ((1 - mix) * dt).to(dtype)[..., None, None] * (state.x.transpose(-1, -2) @ state.B)
    added = (mix * dt).to(dtype)[..., None, None] * (inputs.transpose(-1, -2) @ keys)
    memory = log_decay.to(dtype).exp()[..., None, None] * (state.memory + before) + added
    y = queries @ memory.transpose(-1, -2) + D.to(dtype)[:, None, None] * inputs
    return y.to(x.dtype), Mamba3State(memory, keys, inputs, angles)


def mamba3_reference(*inputs: Tensor) -> tuple[Tensor, Mamba3State]:
    """Compute `mamba3`, without a chunk's length, token by token in float64; return y and the final state."""
    x, _, _, _, theta, B, _, D = inputs
    (batch, _, heads, _, head_dim), state_dim = x.shape, B.shape[-1]
    state = Mamba3State(
        x.new_zeros(batch, heads, head_dim, state_dim),
        torch.zeros_like(B[:, 0]),
        torch.zeros_like(x[:, 0]),
        torch.zeros_like(theta[:, 0]),
    )

    def step(state: Mamba3State, *token: Tensor) -> tuple[Tensor, Mamba3State]:
        x, dt, log_decay, mix, theta, B, C = token
        return mamba3_step(state, x, dt, log_decay, mix, theta, B, C, D.double())

    return run_steps(step, state, *inputs[:-1])


def _accumulated(theta: Tensor, dt: Tensor, start: Tensor | None = None) -> Tensor:
    """Return phi in [0, 2 pi), [b, s, h, k]; summed in float64, since a long sequence turns many times."""
    angles = (theta * dt.unsqueeze(-1)).double().cumsum(1)
    if start is not None:
        angles = angles + start.double().unsqueeze(1)
    return torch.remainder(angles, 2 * math.pi).to(accumulation_dtype(theta))


def _rotated(x: Tensor, angles: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate the pairs (i, i + n // 2) of x [..., h, r, n] by angles [..., h, k]; return them in a dtype."""
    pairs, half = angles.shape[-1], x.shape[-1] // 2
    cos, sin = angles.cos().unsqueeze(-2), angles.sin().unsqueeze(-2)
    one, other = x[..., :pairs], x[..., half : half + pairs]
    parts = (one * cos - other * sin, x[..., pairs:half], one * sin + other * cos, x[..., half + pairs :])
    return torch.cat([part.to(dtype) for part in parts], -1)


def _weights(dt: Tensor, mix: Tensor) -> tuple[Tensor, Tensor]:
    """Return m_t dt_t and w_t, each [b, s, h]. The state before the first token already holds that token's weight."""
    own = mix * dt
    return own, _later(own) + (dt - own)


def _later(x: Tensor, first: Tensor | None = None) -> Tensor:
    """Move x [b, s, ...] one token on; `first` [b, ...], else zeros, takes the first place."""
    if first is None:
        return F.pad(x[:, :-1], (0, 0) * (x.dim() - 2) + (1, 0))
    return torch.cat([first.to(x.dtype).unsqueeze(1), x[:, :-1]], 1)


def _past(x: Tensor, weights: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
    """Compute exp(a_t) C_t P_t^T from zero, with x and B of tokens that are one later."""
    later = _later(log_decay)
    if x.shape[3] > 1:
        y = ranked_ssd((x * weights[..., None, None]).to(x.dtype), later, B, C, chunk_size)
    else:
        y = ssd(x.squeeze(3), weights, later, B.squeeze(3), C.squeeze(3), None, chunk_size).unsqueeze(3)
    return y * log_decay.exp()[..., None, None]


def _present(x: Tensor, own: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute what a token gives to its own output, m_t dt_t C_t B_t^T x_t + D x_t: rotation leaves products alone."""
    dtype = accumulation_dtype(x)
    wide, skip = x.to(dtype), D.to(dtype)[:, None, None]
    if x.shape[3] == 1:
        return (own[..., None, None] * (C * B).sum(-1, keepdim=True).to(dtype) + skip) * wide
    scores = C.to(x.dtype) @ B.to(x.dtype).transpose(-1, -2)
    return own[..., None, None] * (scores @ x).to(dtype) + skip * wide
