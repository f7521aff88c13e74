"""What each of megatron-core's optimizers updates in this process: whole parameters, fp32 copies, or flat shards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MegatronOptimizer
from torch import Tensor

from hybridtron.distributed.process_groups.groups import ParallelContext


def held_parameters(optimizer: MegatronOptimizer) -> Iterator[tuple[Any, Tensor, int]]:
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


def counted_parameters(optimizer: ChainedOptimizer, context: ParallelContext) -> Iterator[tuple[Any, Tensor]]:
    """Yield parameters with what the optimizer updates here, so that all processes together yield each element once."""
    for each in optimizer.chained_optimizers:
        is_sharded = isinstance(each, DistributedOptimizer)
        for parameter, main, _ in held_parameters(each):
            spec = parameter.spec
            tensor = context.shards.expert_tensor if spec.experts else context.shards.tensor
            replica = context.expert_replica if spec.experts else context.replica
            is_copy = parameter.shared or (not spec.parts and tensor.rank) or (not is_sharded and replica.rank)
            if not is_copy:
                yield parameter, main
