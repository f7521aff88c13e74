"""Forms of attention: what one would write first, and the public ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from op_parts.inputs import (
    SOFTCAP,
    WIDTH,
)


def square(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    """Attention over all pairs of tokens and a mask."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5
    return (scores.masked_fill(~seen(q.shape[2], window), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def square_with_sinks(q: Tensor, k: Tensor, v: Tensor, sinks: Tensor) -> Tensor:
    """Compute attention as transformers' gpt-oss does: sinks are a column of scores, dropped after the softmax."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = (q @ k.transpose(-1, -2) / WIDTH**0.5).masked_fill(~seen(q.shape[2], None), -torch.inf)
    column = sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
    return (torch.cat([scores, column], -1).softmax(-1)[..., :-1] @ v).transpose(1, 2)


def square_with_decays(q: Tensor, k: Tensor, v: Tensor, sums: Tensor) -> Tensor:
    """Compute attention with forget gates by its equation: sums of log gates between all pairs of tokens."""
    q, k, v, sums = (x.transpose(1, 2) for x in (q, k, v, sums))
    scores = q @ k.transpose(-1, -2) / WIDTH**0.5 + (sums.unsqueeze(-1) - sums.unsqueeze(-2)).float()
    return (scores.masked_fill(~seen(q.shape[2], None), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def square_with_softcap(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute attention as transformers' Gemma 2 does."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    scores = SOFTCAP * torch.tanh(q @ k.transpose(-1, -2) / WIDTH**0.5 / SOFTCAP)
    return (scores.masked_fill(~seen(q.shape[2], None), -torch.inf).softmax(-1) @ v).transpose(1, 2)


def sdpa(q: Tensor, k: Tensor, v: Tensor, window: int | None = None) -> Tensor:
    mask = None if window is None else seen(q.shape[1], window)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None).transpose(1, 2)


def seen(length: int, window: int | None) -> Tensor:
    lags = torch.arange(length).unsqueeze(1) - torch.arange(length)
    return (lags >= 0) & (lags < (window or length))
