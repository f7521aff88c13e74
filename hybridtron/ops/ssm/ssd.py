"""Mamba-2's state-space duality (Dao & Gu 2024, arXiv 2405.21060): a selective state space with one decay per head.

For every head, with state S [p, n] and the B, C of the head's group:
    S_t = exp(dt_t A) S_{t-1} + dt_t x_t B_t^T,    y_t = S_t C_t + D x_t.

The chunked form (section 6 of the paper) cuts the sequence into chunks of length l. With c_i the sum of dt A in the
chunk up to i,
    y_i = sum_{j <= i} M_ij x_j + exp(c_i) S C_i,    M_ij = (C_i . B_j) exp(c_i - c_j) dt_j,
where S is the state before the chunk, and exp(c_l) S + sum_j exp(c_l - c_j) dt_j x_j B_j^T the state after it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import chunks_of
from hybridtron.ops.dispatch import otherwise, plain, register, select
from hybridtron.ops.elementwise.precision import accumulation_dtype
from hybridtron.ops.recurrence import run_steps, sums_around
from hybridtron.ops.ssm.ssd_tiles import TiledSSD
from hybridtron.ops.ssm.vendor import SSD


def ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk_size: int) -> Tensor:
    """Compute the selective state space over whole sequences from a zero state, by matmuls over chunks.

    x [b, s, h, p]; dt [b, s, h], not negative; A [h], negative, or logarithms of decays [b, s, h] in place of dt A;
    B and C [b, s, g, n] with g dividing h; D [h] or None. Returns y [b, s, h, p] laid out in memory as x is.
    `chunk_size` is the most tokens a chunk may have and changes speed, not results. Decays are kept in float32 (float64
    for float64 inputs); matmuls take the dtype of x.
    """
    return select("ssd", x, dt, A, B, C, D)(x, dt, A, B, C, D, chunk_size)


def _in_even_chunks(
    of_chunks: Callable[..., Tensor],
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    chunk_size: int,
) -> Tensor:
    """Compute `ssd` by a function that takes a multiple of the chunk's length and the length."""
    seq_len, (count, length) = x.shape[1], chunks_of(x.shape[1], chunk_size)
    if count * length > seq_len:
        padding = count * length - seq_len
        x, B, C = (F.pad(tensor, (0, 0, 0, 0, 0, padding)) for tensor in (x, B, C))
        dt, A = (F.pad(tensor, (0, 0, 0, padding)) if tensor.dim() == 3 else tensor for tensor in (dt, A))
    return of_chunks(x, dt, A, B, C, D, length)[:, :seq_len]


def ssd_reference(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None = None, initial_state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Compute the recurrence, token by token in float64; return y [b, s, h, p] and the final state [b, h, p, n]."""
    batch, _, heads, head_dim = x.shape
    state = x.new_zeros(batch, heads, head_dim, B.shape[-1]) if initial_state is None else initial_state
    return run_steps(lambda state, x, dt, B, C: ssd_step(state, x, dt, A, B, C, D), state, x, dt, B, C)


def ssd_step(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Compute one token: state [b, h, p, n], x [b, h, p], dt [b, h], B and C [b, g, n]; return y [b, h, p], state."""
    dtype, by_group = accumulation_dtype(state), (B.shape[1], -1)
    inputs, steps, b, c = (t.to(dtype) for t in (x, dt, B, C))
    decayed = torch.exp(steps * A.to(dtype))[..., None, None] * state.to(dtype)
    stepped = (steps.unsqueeze(-1) * inputs).unflatten(1, by_group).unsqueeze(-1)  # [b, g, r, p, 1]
    wide = torch.addcmul(decayed.unflatten(1, by_group), stepped, b[:, :, None, None])  # [b, g, r, p, n]
    y = (wide.flatten(2, 3) @ c.unsqueeze(-1)).view_as(inputs)
    if D is not None:
        y = torch.addcmul(y, D.to(dtype).unsqueeze(-1), inputs)
    return y.to(x.dtype), wide.flatten(1, 2).to(state.dtype)


def ssd_prefill(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Compute `ssd` from state [b, h, p, n]; returns y [b, s, h, p] and the state after the last token."""
    dtype, groups = state.dtype, B.shape[2]
    steps, held = dt.to(dtype), state.unflatten(1, (groups, -1))  # [b, g, r, p, n]
    before, after = sums_around(steps * A.to(dtype))  # [b, s, h]
    inputs = (x.to(dtype) * (after.exp() * steps).unsqueeze(-1)).unflatten(2, (groups, -1))
    carried = torch.einsum("bsgn,bgrpn->bsgrp", C.to(dtype), held).flatten(2, 3) * before.exp().unsqueeze(-1)
    y = ssd(x, dt, A, B, C, D, chunk_size) + carried
    added = torch.einsum("bsgrp,bsgn->bgrpn", inputs, B.to(dtype)).flatten(1, 2)
    return y.to(x.dtype), torch.addcmul(added, before[:, -1].exp()[..., None, None], state)


def _plain_ssd(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, length: int) -> Tensor:
    """Compute the same matmuls in differentiable, batchable operations; the sequence is a multiple of `length`."""
    dtype, repeats = accumulation_dtype(x), x.shape[2] // B.shape[2]
    xs, steps, b, c = (t.to(dtype).unflatten(1, (-1, length)).transpose(2, 3) for t in (x, dt.unsqueeze(-1), B, C))
    inputs = (xs * steps).unflatten(2, (-1, repeats))  # [b, chunks, g, r, l, p]
    if A.dim() == 1:
        log_decays = steps.squeeze(-1) * A.to(dtype).unsqueeze(-1)  # [b, chunks, h, l]
    else:
        log_decays = A.to(dtype).unflatten(1, (-1, length)).transpose(2, 3)
    total = log_decays.cumsum(-1).unflatten(2, (-1, repeats))  # [b, chunks, g, r, l]
    later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
    decays = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()  # [b, chunks, g, r, l, l]
    y = (decays * (c @ b.transpose(-1, -2)).unsqueeze(3)) @ inputs
    if xs.shape[1] > 1:
        weighted = inputs[:, :-1] * (total[:, :-1, ..., -1:] - total[:, :-1]).exp().unsqueeze(-1)
        states = b[:, :-1].transpose(-1, -2) @ weighted.transpose(3, 4).flatten(-2)  # [b, chunks - 1, g, n, r p]
        carry = total[..., -1].exp().repeat_interleave(xs.shape[-1], -1).unsqueeze(-2)  # [b, chunks, g, 1, r p]
        first, *others = states.unbind(1)
        running = [first]
        for added, kept in zip(others, carry[:, 1:-1].unbind(1), strict=True):
            running.append(added + kept * running[-1])
        carried = (c[:, 1:] @ torch.stack(running, 1)).unflatten(-1, (repeats, -1)).transpose(3, 4)
        y = torch.cat([y[:, :1], y[:, 1:] + carried * total[:, 1:].exp().unsqueeze(-1)], 1)
    y = y.flatten(2, 3)
    if D is not None:
        y = y + D.to(dtype)[:, None, None] * xs
    return y.transpose(2, 3).flatten(1, 2).to(x.dtype)


register(
    "ssd",
    "ssd",
    plain(partial(_in_even_chunks, _plain_ssd)),
    SSD,
    otherwise("PyTorch, in chunks and tiles", partial(_in_even_chunks, TiledSSD.apply)),
    sample=lambda one: (heads := one.new_ones(1, 1, 1, 8), heads[..., 0], one[0], heads, heads, one[0]),
)
