"""Limits on the gradients of groups of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.optimizer import ChainedOptimizer
from torch import Tensor

from hybridtron.distributed.optimizer.held_parameters import counted_parameters, held_parameters
from hybridtron.distributed.process_groups.groups import ParallelContext

EPS = 1e-6  # of a norm, as megatron-core adds to the norm of all gradients


class ClipGroup(NamedTuple):
    """The parameters of these names have gradients whose norm, over all processes, is at most `limit`."""

    limit: float
    names: frozenset[str]


@torch.no_grad()
def clip_groups(optimizer: ChainedOptimizer, groups: Sequence[ClipGroup], context: ParallelContext) -> None:
    """Scale down the gradients of each group whose norm is above its limit. No device is waited for.

    A gradient that is not finite, or whose norm is not, makes its whole group so.
    """
    squares = torch.zeros(len(groups), device=context.device)
    row = {name: index for index, group in enumerate(groups) for name in group.names}
    for parameter, main in counted_parameters(optimizer, context):
        if parameter.full_name in row and main.grad is not None:
            squares[row[parameter.full_name]] += torch.linalg.vector_norm(main.grad).square()
    dist.all_reduce(squares)
    limits = torch.tensor([group.limit for group in groups]).to(context.device, non_blocking=True)
    scales: Tensor = (limits / (squares.sqrt() + EPS)).clamp_max(1.0)
    scales = scales.where(squares.isfinite(), torch.nan)
    for each in optimizer.chained_optimizers:
        for parameter, main, _ in held_parameters(each):
            if parameter.full_name in row and main.grad is not None:
                main.grad.mul_(scales[row[parameter.full_name]])
