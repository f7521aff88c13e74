"""Filters that are sums of decaying exponentials: of any length, with a finite state, such as the long implicit filter
of StripedHyena 2 (Ku et al. 2025, arXiv 2503.01868).

A filter of n real modes is h_t = sum_i r_i exp(a_i t), a_i < 0. A convolution with it is the output of n recurrences,
S_t = exp(a_i) S_{t-1} + u_t and y_t = sum_i r_i S_t.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.cuts import modal_filter_shape


def modal_filter(log_poles: Tensor, residues: Tensor, length: int) -> Tensor:
    """Return the filters h [g, length] of log_poles (a) and residues (r), [g, n] each.

    A lag is cut into a multiple of about the root of the length and the rest, and exp(a t) into the product of both
    parts, so that few exponentials are taken and a matrix product makes the filter of them.
    """
    rest, multiples = modal_filter_shape(length)
    fine = torch.arange(rest, dtype=log_poles.dtype, device=log_poles.device)
    coarse = rest * torch.arange(multiples, dtype=log_poles.dtype, device=log_poles.device)
    late = residues.unsqueeze(-1) * (log_poles.unsqueeze(-1) * coarse).exp()  # [g, n, multiples]
    early = (log_poles.unsqueeze(-1) * fine).exp()  # [g, n, rest]
    return (late.transpose(1, 2) @ early).flatten(1)[:, :length]


def modal_prefill(state: Tensor, u: Tensor, log_poles: Tensor, residues: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what state [b, c, n] adds to the convolution of u [b, s, c]; returns it [b, s, c], and the state after u.

    To it `long_conv` adds u under `modal_filter`.
    """
    (_, seq_len, channels), groups, dtype = u.shape, len(log_poles), state.dtype
    ages = torch.arange(seq_len, dtype=dtype, device=u.device)
    poles = log_poles.to(dtype).unsqueeze(-1)
    held, added = state.unflatten(1, (groups, -1)), u.to(dtype).unflatten(2, (groups, channels // groups))
    decays = (poles * (ages + 1)).exp()  # [g, n, s]
    y = torch.einsum("gns,bgcn->bsgc", residues.to(dtype).unsqueeze(-1) * decays, held).flatten(2)
    new = torch.einsum("gns,bsgc->bgcn", (poles * ages.flip(0)).exp(), added)
    return y.to(u.dtype), (new + decays[..., -1].unsqueeze(1) * held).flatten(1, 2)


def modal_step(state: Tensor, u: Tensor, log_poles: Tensor, residues: Tensor) -> tuple[Tensor, Tensor]:
    """Compute one token of the convolution: state [b, c, n], u [b, c]; returns y [b, c] and the state.

    The g filters of log_poles and residues [g, n] are each shared by c / g consecutive channels.
    """
    repeats = u.shape[1] // len(log_poles)
    poles, weights = (t.to(state.dtype).repeat_interleave(repeats, 0) for t in (log_poles.exp(), residues))
    state = poles * state + u.to(state.dtype).unsqueeze(-1)
    return (weights * state).sum(-1).to(u.dtype), state
