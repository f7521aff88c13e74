"""How kernels of scans cut sequences into chunks and channels into blocks."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridtron.ops.linear_attention.decays import STRONGEST
from hybridtron.ops.triton.launch import ceil_div, power_of_two

_LONGEST_CHUNK = 64  # tokens
_LEAST = 16  # rows and columns of a product in Triton
_HALF = (torch.bfloat16, torch.float16)


def chunk_length(seq_len: int) -> int:
    """Return the tokens of a chunk, a power of two from 16 to 64."""
    return max(_LEAST, min(_LONGEST_CHUNK, power_of_two(seq_len)))


def sums_in_chunks(g: Tensor) -> Tensor:
    """Sum log decays [b, s, ...] in each chunk up to each token, with zeros after the end: float32 [b, padded, ...]."""
    length = chunk_length(g.shape[1])
    padded = ceil_div(g.shape[1], length) * length
    padding = (0, 0) * (g.dim() - 2) + (0, padded - g.shape[1])
    return F.pad(g.float().clamp_min(STRONGEST), padding).unflatten(1, (-1, length)).cumsum(2).flatten(1, 2)


def block_of(dim: int, most: int) -> int:
    """Return the channels of a block, a power of two of at least 16."""
    return max(_LEAST, min(most, power_of_two(dim)))


def precision_of(v: Tensor) -> Literal["tf32", "tf32x3"]:
    """Return how products are computed: three products of TF32 numbers have the digits of float32."""
    return "tf32" if v.dtype in _HALF else "tf32x3"
