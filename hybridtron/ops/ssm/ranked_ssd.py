"""A state space whose states have several inputs and outputs per token, in chunks: `ssd` of rank r."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import chunks_of
from hybridtron.ops.elementwise.precision import accumulation_dtype


def ranked_ssd(x: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, chunk_size: int) -> Tensor:
    """Compute y_t = C_t S_t^T, S_t = exp(a_t) S_{t-1} + x_t^T B_t, from a zero state by matmuls over chunks.

    x [b, s, h, r, p]; log_decay [b, s, h]; B and C [b, s, h, r, n]. Returns y [b, s, h, r, p].
    A chunk has at most `chunk_size` tokens times r. A token's inputs reach all of its outputs.
    """
    (seq_len, rank), dtype = (x.shape[1], x.shape[3]), accumulation_dtype(x)
    count, length = chunks_of(seq_len, max(1, chunk_size // rank))
    padding = (0, 0) * 3 + (0, count * length - seq_len)
    inputs, keys, queries = (_by_chunk(F.pad(t, padding), length) for t in (x, B, C))  # [b, chunks, h, l r, .]
    steps = F.pad(log_decay.to(dtype), padding[4:])
    total = steps.unflatten(1, (count, length)).transpose(2, 3).cumsum(-1)  # [b, chunks, h, l]
    scores = queries @ keys.transpose(-1, -2)
    y = (scores * _within(total, rank)).to(x.dtype) @ inputs
    if count > 1:
        left = (total[:, :-1, ..., -1:] - total[:, :-1]).exp().repeat_interleave(rank, -1).unsqueeze(-1)
        states = keys[:, :-1].transpose(-1, -2) @ (inputs[:, :-1] * left).to(x.dtype)  # [b, chunks - 1, h, n, p]
        first, *others = states.to(dtype).unbind(1)
        running = [first]
        for added, decay in zip(others, total[:, 1:-1, :, -1:, None].exp().unbind(1), strict=True):
            running.append(torch.addcmul(added, decay, running[-1]))
        carried = queries[:, 1:] @ torch.stack(running, 1).to(x.dtype)
        reached = total[:, 1:].exp().repeat_interleave(rank, -1).unsqueeze(-1)
        y = torch.cat([y[:, :1].to(dtype), y[:, 1:] + carried * reached], 1)
    return y.unflatten(3, (length, rank)).permute(0, 1, 3, 2, 4, 5).flatten(1, 2)[:, :seq_len]


def _by_chunk(x: Tensor, length: int) -> Tensor:
    """Return x [b, s, h, r, d] as [b, chunks, h, l r, d]."""
    return x.unflatten(1, (-1, length)).transpose(2, 3).flatten(3, 4)


def _within(total: Tensor, rank: int) -> Tensor:
    """Return exp(c_i - c_j) for tokens j <= i, else 0, for each pair of ranks: [b, chunks, h, l r, l r]."""
    length = total.shape[-1]
    later = torch.ones(length, length, dtype=torch.bool, device=total.device).triu(1)
    decays = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
    return decays.repeat_interleave(rank, -1).repeat_interleave(rank, -2)
