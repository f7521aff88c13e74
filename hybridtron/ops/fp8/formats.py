"""The two FP8 formats (Micikevicius et al. 2022, arXiv 2209.05433), and tensors rounded to them with scales."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
# Absolute values above these, half a step over the largest number, are further from it than rounding is from a value.
SATURATED_ABOVE = {E4M3: 464.0, E5M2: 61440.0}


class Quantized(NamedTuple):
    """A matrix as FP8 numbers, and the inverse of the scale that each block of them was multiplied by."""

    data: Tensor  # float8 [rows, columns]
    inverse: Tensor  # float32 [], or one for each block [row blocks, column blocks]
    block: tuple[int, int] | None = None  # rows and columns of a block

    def inverses(self) -> Tensor:
        """Return the inverse scale of each element, in a shape that broadcasts to [rows, columns]."""
        return self.inverse if self.block is None else expand_blocks(self.inverse, self.block, self.data.shape)

    def values(self) -> Tensor:
        """Return the represented values [rows, columns] in float32."""
        return self.data.float() * self.inverses()

    def factors(self) -> tuple[Tensor, Tensor | float]:
        """Return a float32 matrix and a number that products of it are to be multiplied by."""
        numbers = self.data.float()
        return (numbers, self.inverse) if self.block is None else (numbers * self.inverses(), 1.0)


def round_to(scaled: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 values to FP8, to nearest even; what is too large becomes the largest number, NaN stays."""
    largest = LARGEST[dtype]
    return scaled.clamp(-largest, largest).to(dtype)


def expand_blocks(values: Tensor, block: tuple[int, int], shape: torch.Size) -> Tensor:
    """Repeat the value of each block for its elements: [row blocks, column blocks] -> shape [rows, columns]."""
    for axis in (0, 1):
        if block[axis] > 1:
            values = values.repeat_interleave(block[axis], axis, output_size=values.shape[axis] * block[axis])
    return values[: shape[0], : shape[1]]


def block_amax(x: Tensor, block: tuple[int, int]) -> Tensor:
    """Return the largest absolute value of each block of a matrix, the last ones cut short where sizes do not divide:
    [rows, columns] -> [row blocks, column blocks]."""
    height, width = block
    padded = F.pad(x, (0, -x.shape[1] % width, 0, -x.shape[0] % height))
    return padded.abs().unflatten(1, (-1, width)).unflatten(0, (-1, height)).amax((1, 3))


def count_lost(x: Tensor, quantized: Quantized) -> Tensor:
    """Count values of x [rows, columns] that saturated, those that became zero and were not, and all: [3], float64."""
    scaled = x / quantized.inverses()
    saturated = (scaled.abs() > SATURATED_ABOVE[quantized.data.dtype]).sum()
    flushed = ((quantized.data.float() == 0) & (x != 0)).sum()
    return torch.stack([saturated, flushed, torch.full_like(flushed, x.numel())]).double()
