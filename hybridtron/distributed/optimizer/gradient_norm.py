"""The norm of all gradients, of which the device is asked nothing before it is read.

megatron-core's own reads one number per parameter from the device where neither Transformer Engine nor apex is there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from megatron.core.optimizer import ChainedOptimizer, MegatronOptimizer
from torch import Tensor


def squared_norms(optimizer: ChainedOptimizer, device: torch.device) -> Tensor:
    """Compute the squared norms, over all processes, of parts of the gradients that add up to all: [parts] float32.

    A part is an optimizer of the chain, or all where they share their group of processes.
    """
    each = optimizer.chained_optimizers
    if len(each) == 1 or optimizer.grads_states_parallel_group_is_shared():
        grads = [grad for one in each for grad in _grads(one)]
        return _squared_norm(grads, each[0].get_grad_stats_parallel_group(), device)
    return torch.cat([_squared_norm(_grads(one), one.get_grad_stats_parallel_group(), device) for one in each])


def _grads(optimizer: MegatronOptimizer) -> Sequence[Tensor]:
    """Return the gradients of an optimizer that count; megatron-core 0.19 gives the method another name."""
    old, new = "get_main_grads_for_grad_norm", "get_grads_for_grad_norm"
    named = old if hasattr(optimizer, old) else new
    grads: Sequence[Tensor] = getattr(optimizer, named)()
    return grads


def norm_of(squares: Sequence[float]) -> float:
    """Return the norm of all gradients from the squared norms of its parts."""
    norms = [square**0.5 for square in squares]
    return norms[0] if len(norms) == 1 else math.sqrt(sum(norm**2 for norm in norms))


def _squared_norm(grads: Sequence[Tensor], group: dist.ProcessGroup, device: torch.device) -> Tensor:
    """Compute the squared norm [1] of tensors, added up over a group."""
    square = torch.zeros(1, device=device)
    if grads:
        square = torch.stack(torch._foreach_norm(list(grads))).float().norm().square().reshape(1)
    dist.all_reduce(square, group=group)
    return square
