"""Orthogonalising a matrix by Newton-Schulz iterations, as the optimizer Muon does."""

from __future__ import annotations

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at 0, so that few iterations do
EPS = 1e-7  # of the norm


def orthogonalize(matrix: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return nearly U V^T of matrix = U S V^T, [..., rows, columns]: singular values between about 0.7 and 1.2.

    X <- a X + (b A + c A A) X with A = X X^T, from X = matrix / its Frobenius norm (Jordan et al. 2024, "Muon: an
    optimizer for hidden layers in neural networks"). Multiplications are in `dtype`; the result has the matrix's own.
    Leading axes count matrices. A matrix of zeros stays zero.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.size(-2) > matrix.size(-1)
    wide = matrix.mT if is_tall else matrix
    x = (wide / wide.norm(dim=(-2, -1), keepdim=True).clamp_min(EPS)).to(dtype)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return (x.mT if is_tall else x).to(matrix.dtype)
