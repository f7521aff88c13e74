"""Inverses of triangular matrices, which delta rules solve their chunks by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def inverse_of_unit_lower(strict: Tensor) -> Tensor:
    """Compute (I + strict)^-1 of strictly lower triangular matrices [..., l, l], l a power of two.

    The inverse of [[A, 0], [C, B]] is [[A^-1, 0], [-B^-1 C A^-1, B^-1]].
    """
    length, size = strict.shape[-1], 1
    inverses = strict.new_ones(*strict.shape[:-1], 1, 1)  # of the diagonal blocks [..., blocks, size, size]
    while size < length:
        blocks = strict.unflatten(-1, (-1, 2, size)).unflatten(-4, (-1, 2, size))  # [..., i, 2, size, j, 2, size]
        corners = blocks[..., 1, :, :, 0, :].diagonal(dim1=-4, dim2=-2).movedim(-1, -3)  # [..., pairs, size, size]
        upper, lower = inverses.unflatten(-3, (-1, 2)).unbind(-3)
        corner = -corners if size == 1 else -(lower @ (corners @ upper))
        inverses = torch.cat([F.pad(upper, (0, size)), torch.cat([corner, lower], -1)], -2)
        size *= 2
    return inverses.squeeze(-3)
