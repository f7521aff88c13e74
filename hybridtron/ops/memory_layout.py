"""How tensors lie in memory, which kernels read and write by strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def channels_contiguous(x: Tensor) -> Tensor:
    """Return x [..., c], or a copy where its channels are strided."""
    return x if x.stride(-1) == 1 else x.contiguous()


def empty_laid_out_as(x: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Allocate `shape` [b, s, ...] with sequences or tokens outermost in memory, as in x, which often comes straight
    from a projection; in the dtype of x by default."""
    batch, tokens, *rest = shape
    dtype = x.dtype if dtype is None else dtype
    if x.stride(0) >= x.stride(1):
        return x.new_empty(batch, tokens, *rest, dtype=dtype)
    return x.new_empty(tokens, batch, *rest, dtype=dtype).transpose(0, 1)


def with_strides(*tensors: Tensor) -> list[Any]:
    """Return each tensor [b, s, heads, d] followed by its strides but the last, as kernels take them."""
    return [argument for tensor in tensors for argument in (tensor, *tensor.stride()[:3])]
