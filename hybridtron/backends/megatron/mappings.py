"""Sums over a group of processes, in the forward pass or in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hybridtron.ops.opaque import opaque


class _CopyToRegion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _sum(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _sum(grads[0], ctx.group), None


@opaque
def copy_to_region(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Return x itself, whose gradient is added up over a group.

    megatron-core's own loses the sum of a gradient that does not lie contiguous in memory.
    """
    return _CopyToRegion.apply(x, group)


@opaque
def all_reduce(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Add up x over a group, for use in each of its processes: so is its gradient."""
    return _AllReduce.apply(x, group)


def _sum(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total
