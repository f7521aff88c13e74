"""Factors of queries that grow with the logarithm of the length (Nakanishi 2025, arXiv 2501.19399)."""

from __future__ import annotations

import torch
from torch import Tensor


def llama4_factors(tokens: Tensor, scale: float, floor: int) -> Tensor:
    """Return 1 + scale * ln(1 + floor(n / floor)) for tokens numbered n from 1, as transformers' Llama 4."""
    return 1 + scale * torch.log1p(torch.div(tokens, floor, rounding_mode="floor"))


def inkling_factors(tokens: Tensor, scale: float, floor: int) -> Tensor:
    """Return 1 + scale * ln(max(1, n / floor)) for tokens numbered n from 1, as transformers' Inkling."""
    return 1 + scale * torch.log((tokens / floor).clamp_min(1))
