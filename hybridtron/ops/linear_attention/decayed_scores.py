"""Scores of tokens for earlier ones, faded channel by channel by the decays between them.

With c_i the sum of log decays up to i, token i sees token j <= i by sum_n q_in k_jn exp(c_in - c_jn). Written as a
product of q exp(c) and k exp(-c) that overflows. Instead a block of 2m tokens is halved: its second half sees its first
through q exp(c_i - c_mid) and k exp(c_mid - c_j), where c_mid is the sum at the end of the first half, so no exponent
is positive. Halves are halved again, down to single tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.cuts import GLA_BLOCK


def decayed_scores(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """Compute the scores of r queries a token, q [r, ..., l, n], with k and total [..., l, n] -> [r, ..., l, l].

    l is a power of two; scores for later tokens are zero.
    """
    length = k.shape[-2]
    size = min(GLA_BLOCK, length)
    scores = small_scores(*(t.unflatten(-2, (-1, size)) for t in (q, k, total)))  # [r, ..., blocks, size, size]
    while size < length:
        qs, ks, sums = (t.unflatten(-2, (-1, 2, size)) for t in (q, k, total))  # [..., pairs, 2, size, n]
        queries, keys = faded_halves(qs, ks, sums)
        across = torch.cat(queries.unbind(0), -2) @ keys.transpose(-1, -2)  # [..., pairs, r * size, size]
        scores = joined_halves(scores.unflatten(-3, (-1, 2)), across.unflatten(-2, (len(q), -1)).movedim(-3, 0))
        size *= 2
    return scores.squeeze(-3)


def small_scores(q: Tensor, k: Tensor, total: Tensor) -> Tensor:
    """Compute the scores of each token of a small block for those up to itself: three of [..., l, n] -> [..., l, l].

    Elementwise, since matrix products of two rows cost more than they save.
    """
    if q.shape[-2] == 1:
        return (q * k).sum(-1, keepdim=True)
    halves = [t.unflatten(-2, (2, -1)) for t in (q, k, total)]  # [..., 2, l / 2, n]
    queries, keys = faded_halves(*halves)
    across = (queries.unsqueeze(-2) * keys.unsqueeze(-3)).sum(-1)  # [..., l / 2, l / 2]
    return joined_halves(small_scores(*halves), across)


def faded_halves(q: Tensor, k: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """Return the queries of second halves and the keys of first ones, each faded to the middle.

    q, k and total are [..., 2, l, n]; returns two of [..., l, n].
    """
    middle = total[..., 0, -1:, :]
    queries = q[..., 1, :, :] * (total[..., 1, :, :] - middle).exp()
    return queries, k[..., 0, :, :] * (middle - total[..., 0, :, :]).exp()


def joined_halves(halves: Tensor, across: Tensor) -> Tensor:
    """Return the scores of blocks from those within their halves [..., 2, l, l] and between them [..., l, l]."""
    first, second = halves.unbind(-3)
    return torch.cat([F.pad(first, (0, across.shape[-1])), torch.cat([across, second], -1)], -2)
