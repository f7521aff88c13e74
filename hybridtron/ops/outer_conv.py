"""Multi-head Hyena's convolution of outer products (Massaroli et al. 2023, arXiv 2310.18780, section 4).

Every head has a filter h, and its state is a matrix: y_t = q_t^T sum_{j <= t} h_{t - j} k_j v_j^T. Two forms give the
same result. By pairs of tokens: attention whose scores q_t . k_j are weighted by h_{t - j}, with no normalisation; cost
per token grows with the length. By Fourier transforms of all d * d entries of k v^T; cost per token grows with its
logarithm. Measured on one CPU core with d of 8, 16 and 32, the second is faster from about 5 d^2 tokens on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.ops.long_conv import convolve, convolve_fft_flops
from hybridtron.ops.precision import accumulation_dtype


def outer_conv(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """q, k and v [b, s, m, d] of m heads, h [m, at least s] -> y [b, s, m, d] in the dtype of v.

    Computed in float32, or in float64 for float64 inputs.
    """
    seq_len, dtype = q.shape[1], accumulation_dtype(v)
    form = by_pairs if _few_tokens(seq_len, q.shape[-1]) else by_fft
    return form(q.to(dtype), k.to(dtype), v.to(dtype), h[:, :seq_len].to(dtype)).to(v.dtype)


def by_pairs(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # [b, m, s, d]
    return ((q @ k.transpose(-1, -2) * toeplitz(h)) @ v).transpose(1, 2)


def toeplitz(h: Tensor) -> Tensor:
    """Of filters [g, l] the matrices [g, l, l] that convolve l tokens: h[i - j] in row i and column j, zeros above."""
    length = h.shape[1]
    row = torch.cat([h[:, :1], torch.zeros_like(h), h[:, 1:].flip(-1)], -1)  # the first, wrapped around, 2 l long
    # Read as rows that are one shorter, the repeated row starts one token later in each.
    rows = row.unsqueeze(1).expand(-1, length, -1).flatten(1)[:, : length * (2 * length - 1)]
    return rows.unflatten(1, (length, -1))[..., :length]


def by_fft(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    width = q.shape[-1]
    outer = (k.unsqueeze(-1) * v.unsqueeze(-2)).flatten(-2).permute(0, 2, 3, 1)  # [b, m, d d, s]
    states = convolve(outer, h, q.shape[1]).permute(0, 3, 1, 2).unflatten(-1, (width, width))  # [b, s, m, d, d]
    return (q.unsqueeze(-1) * states).sum(-2)


def outer_conv_reference(q: Tensor, k: Tensor, v: Tensor, h: Tensor) -> Tensor:
    """The sum itself, token by token over the states [m, d, d] of float64."""
    q, k, v, h = (t.double() for t in (q, k, v, h))
    added = k.unsqueeze(-1) * v.unsqueeze(-2)  # [b, s, m, d, d]
    outputs = []
    for t in range(q.shape[1]):
        weights = h[:, : t + 1].flip(-1).t()[..., None, None]  # [t + 1, m, 1, 1]
        outputs.append((q[:, t].unsqueeze(-1) * (weights * added[:, : t + 1]).sum(1)).sum(-2))
    return torch.stack(outputs, 1)


def outer_conv_flops(seq_len: int, heads: int, head_dim: int) -> tuple[int, int]:
    """FLOPs of the forward pass of one sequence: of matmuls, and of Fourier transforms."""
    if _few_tokens(seq_len, head_dim):
        return heads * 2 * 2 * seq_len * seq_len * head_dim, 0
    return 0, convolve_fft_flops(2 * seq_len - 1, heads, heads * head_dim * head_dim)


def _few_tokens(seq_len: int, head_dim: int) -> bool:
    return seq_len <= 5 * head_dim * head_dim
