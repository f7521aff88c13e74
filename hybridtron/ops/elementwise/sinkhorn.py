"""Sinkhorn's iteration: matrices of positive numbers whose rows and columns add up to 1."""

from __future__ import annotations

from torch import Tensor


def sinkhorn(x: Tensor, iterations: int, eps: float) -> Tensor:
    """Divide columns, then `iterations` - 1 times rows and columns, by their sums + eps; x [..., n, n], positive.

    (Sinkhorn & Knopp 1967; as DeepSeek V4 has it, columns are those of the second-last axis.)
    """
    x = x / (x.sum(-2, keepdim=True) + eps)
    for _ in range(iterations - 1):
        x = x / (x.sum(-1, keepdim=True) + eps)
        x = x / (x.sum(-2, keepdim=True) + eps)
    return x
