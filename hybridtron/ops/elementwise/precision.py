"""The dtype in which ops accumulate, and whether torch.func transforms them."""

from __future__ import annotations

import torch
from torch import Tensor


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """Return float64 for float64 inputs (reference computations), float32 for every narrower type."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def under_transforms() -> bool:
    """Return whether a torch.func transform (vmap, grad, ...) is active.

    The fused forms write into buffers of their own, which transforms cannot follow, so under a transform every op takes
    its plain differentiable form. torch.autograd.Function.apply asks the same question by the same call.
    """
    return torch._C._are_functorch_transforms_active()


def by_formula() -> bool:
    """Return whether an operation takes its plain differentiable form: under a torch.func transform, or where
    torch.compile looks into it, which fuses that form by itself."""
    return torch.compiler.is_compiling() or under_transforms()
