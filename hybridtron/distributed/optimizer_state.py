"""The optimizer's tensors as a checkpoint stores them: by parameter name, whichever optimizer holds them.

What Adam keeps of parameter NAME is stored as `optimizer.exp_avg.NAME` and `optimizer.exp_avg_sq.NAME`, of a bf16
parameter also its fp32 values as `optimizer.param.NAME`. Settings come from the config, so a run may change its
optimizer with its layout. (megatron-core's own form of the distributed optimizer's state shifts what follows the first
padded bucket of gradients.)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MegatronOptimizer
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class LocalTensor(NamedTuple):
    """What the optimizer of this process keeps of a parameter: all of it, or a flat run that begins at `start`."""

    kind: str  # exp_avg, exp_avg_sq or param
    parameter: nn.Parameter
    data: Tensor
    start: int
    is_sharded: bool  # over the data-parallel processes


def local_tensors(optimizer: ChainedOptimizer) -> Iterator[LocalTensor]:
    """Yield every tensor that the optimizer keeps in this process, in the order of the parameters."""
    for each in optimizer.chained_optimizers:
        _begin(each)
        is_sharded = isinstance(each, DistributedOptimizer)
        for kind in (*MOMENTS, "param"):
            for parameter, main, start in _held(each):
                if kind == "param" and parameter.dtype == torch.float32:
                    continue
                data = main.data if kind == "param" else each.optimizer.state[main][kind]
                yield LocalTensor(kind, parameter, data, start, is_sharded)


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
        adam = each.optimizer
        yield from adam.state.values() if isinstance(adam, torch.optim.AdamW) else adam.param_groups


def _held(optimizer: MegatronOptimizer) -> Iterator[tuple[nn.Parameter, Tensor, int]]:
    """Yield each parameter of the model, what the optimizer updates for it here, and where in it that begins."""
    if isinstance(optimizer, DistributedOptimizer):
        # Not by megatron-core's own index into its groups, which is wrong where a group has bf16 and fp32 parameters.
        shards = [*optimizer.shard_fp32_from_float16_groups, *optimizer.shard_fp32_groups]
        models = [*optimizer.model_float16_groups, *optimizer.model_fp32_groups]
        mains = dict(zip(chain(*models), chain(*shards), strict=True))
        for parameter in optimizer.model_param_group_index_map:
            yield parameter, mains[parameter], optimizer._get_model_param_range_map(parameter)["param"].start
        return
    groups = [(group["params"], group["params"]) for group in optimizer.optimizer.param_groups]
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        groups = list(zip(optimizer.float16_groups, optimizer.fp32_from_float16_groups, strict=True))
        groups += [(group, group) for group in optimizer.fp32_from_fp32_groups]
    for parameters, mains in groups:
        for parameter, main in zip(parameters, mains, strict=True):
            yield parameter, main, 0


def _begin(optimizer: MegatronOptimizer) -> None:
    """Give what was never updated the state that Adam starts with."""
    adam = optimizer.optimizer
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter] = {kind: torch.zeros_like(parameter.data) for kind in MOMENTS}
                if isinstance(adam, torch.optim.AdamW):
                    adam.state[parameter]["step"] = torch.zeros((), device=parameter.device)
