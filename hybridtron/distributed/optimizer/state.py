"""The optimizer's tensors as a checkpoint stores them: by parameter name, whichever optimizer holds them.

What Adam keeps of parameter NAME is stored as `optimizer.exp_avg.NAME` and `optimizer.exp_avg_sq.NAME`, what Muon
keeps as `optimizer.momentum.NAME`, of a bf16 parameter also its fp32 values as `optimizer.param.NAME`, and the average
of weights as `optimizer.ema.NAME`. Settings come from the config, so a run may change its optimizer's settings with its
layout. (megatron-core's own form of the distributed optimizer's state shifts what follows the first padded bucket of
gradients.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import MegatronOptimizer
from torch import Tensor, nn

from hybridtron.checkpoint_keys import FLOAT32_VALUES, MOMENTS, MOMENTUM
from hybridtron.distributed.optimizer.held_parameters import held_parameters
from hybridtron.distributed.optimizer.muon import MuonBesideAdamW


class LocalTensor(NamedTuple):
    """What the optimizer of this process keeps of a parameter: all of it, or a flat run that begins at `start`."""

    kind: str  # of checkpoint_keys.KINDS
    parameter: nn.Parameter
    data: Tensor
    start: int
    is_sharded: bool  # over the data-parallel processes


def local_tensors(optimizer: ChainedOptimizer) -> Iterator[LocalTensor]:
    """Yield every tensor that the optimizer keeps in this process, in the order of the parameters."""
    for each in optimizer.chained_optimizers:
        _begin(_adam(each))
        is_sharded = isinstance(each, DistributedOptimizer)
        for kind in (*MOMENTS, MOMENTUM, FLOAT32_VALUES):  # `WeightAverage` has EMA
            for parameter, main, start in held_parameters(each):
                data = _kept(each, kind, parameter, main)
                if data is not None:
                    yield LocalTensor(kind, parameter, data, start, is_sharded)


def _kept(optimizer: MegatronOptimizer, kind: str, parameter: nn.Parameter, main: Tensor) -> Tensor | None:
    """Return the tensor of a kind that the optimizer keeps of a parameter, if it does."""
    if kind == FLOAT32_VALUES:
        return None if parameter.dtype == torch.float32 else main.data
    matrices = optimizer.optimizer.matrices if isinstance(optimizer.optimizer, MuonBesideAdamW) else {}
    if parameter in matrices:
        return matrices[parameter].momentum if kind == MOMENTUM else None
    return None if kind == MOMENTUM else _adam(optimizer).state[main][kind]


def _adam(optimizer: MegatronOptimizer) -> torch.optim.Optimizer:
    """Return the AdamW of one of megatron-core's optimizers."""
    inner = optimizer.optimizer
    return inner.adamw if isinstance(inner, MuonBesideAdamW) else inner


def updates(optimizer: ChainedOptimizer) -> int:
    """Return the number of updates that Adam has made."""
    return max((int(counts["step"]) for counts in _counts(optimizer) if "step" in counts), default=0)


def set_updates(optimizer: ChainedOptimizer, count: int) -> None:
    """Set the number of updates that Adam has made."""
    for counts in _counts(optimizer):
        step = counts.get("step", 0)
        counts["step"] = torch.full_like(step, count) if isinstance(step, Tensor) else count


def _counts(optimizer: ChainedOptimizer) -> Iterator[dict[str, Any]]:
    """Yield the dictionaries in which Adam counts its updates: torch's for each parameter, Transformer Engine's and
    apex's for each group of them."""
    for each in optimizer.chained_optimizers:
        adam = _adam(each)
        yield from adam.state.values() if isinstance(adam, torch.optim.AdamW) else adam.param_groups


def _begin(adam: torch.optim.Optimizer) -> None:
    """Give what was never updated the state that Adam starts with."""
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter] = {kind: torch.zeros_like(parameter.data) for kind in MOMENTS}
                if isinstance(adam, torch.optim.AdamW):
                    adam.state[parameter]["step"] = torch.zeros((), device=parameter.device)
