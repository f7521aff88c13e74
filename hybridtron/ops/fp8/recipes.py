"""Recipes: which values share a scale, and how a scale follows from the largest absolute value (amax) among them.

They are those of Transformer Engine with its defaults: Float8CurrentScaling (tensorwise), DelayedScaling,
Float8BlockScaling (blockwise; DeepSeek-AI 2024, arXiv 2412.19437) and MXFP8BlockScaling (mxfp8; Rouhani et al. 2023,
arXiv 2310.10537). A value times its scale is rounded to FP8.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridtron.ops.fp8.formats import E4M3, E5M2, LARGEST, Quantized, block_amax, expand_blocks, round_to


def tensor_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scales that take amax to the largest number of the format; 1 for amax that is 0 or not finite."""
    scale = (LARGEST[dtype] / amax).clamp(max=torch.finfo(torch.float32).max)
    return torch.where((amax > 0) & amax.isfinite(), scale, 1.0)


def power_of_two_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the largest powers of two that are at most `tensor_scale`."""
    return (tensor_scale(amax, dtype).view(torch.int32) & 0x7F800000).view(torch.float32)


def e8m0_scale(amax: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the inverses of powers of two 2^e, the least with amax / 2^e within the format; e is stored in 8 bits."""
    bits = (amax * (1 / LARGEST[dtype])).view(torch.int32)
    exponent, mantissa = bits >> 23 & 0xFF, bits & 0x7FFFFF
    rounds_up = (mantissa > 0) & (exponent < 0xFE) & ~((exponent == 0) & (mantissa <= 0x400000))
    exponent = exponent + rounds_up.int()
    return torch.where(exponent >= 0xFE, 0x00400000, 0xFE - exponent << 23).view(torch.float32)  # 2^-127: subnormal


@dataclass(frozen=True)
class Recipe:
    """One way of scaling. `block` values along the axis that a product sums over share a scale; 0: all of a tensor.
    With `square_weights` that is block x block of a weight."""

    gradients: torch.dtype  # format of gradients; activations and weights are E4M3
    scale: Callable[[Tensor, torch.dtype], Tensor]
    block: int = 0
    square_weights: bool = False
    delayed: bool = False  # the scale follows from amax of earlier steps

    def dtype(self, role: str) -> torch.dtype:
        """Return the format of an operand."""
        return self.gradients if role == "grad" else E4M3

    def blocks(self, role: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the blocks of a matrix in products over its columns, and in those over its rows."""
        if role == "weight" and self.square_weights:
            return (self.block, self.block), (self.block, self.block)
        return (1, self.block), (self.block, 1)


RECIPES = {
    "tensorwise": Recipe(E5M2, tensor_scale),
    "delayed": Recipe(E5M2, tensor_scale, delayed=True),
    "blockwise": Recipe(E4M3, power_of_two_scale, 128, square_weights=True),
    "mxfp8": Recipe(E4M3, e8m0_scale, 32),
}


def quantize(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Quantized:
    """Round a float32 matrix times one scale to FP8."""
    return Quantized(round_to(x * scale, dtype), scale.reciprocal())


def quantize_blocks(x: Tensor, block: tuple[int, int], recipe: Recipe, dtype: torch.dtype) -> Quantized:
    """Round a float32 matrix to FP8, each block of it times a scale of its own."""
    scale = recipe.scale(block_amax(x, block), dtype)
    return Quantized(round_to(x * expand_blocks(scale, block, x.shape), dtype), scale.reciprocal(), block)
