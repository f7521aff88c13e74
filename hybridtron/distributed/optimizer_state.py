"""The optimizer's tensors as a checkpoint stores them: by parameter name and whole, whichever optimizer holds them.

What Adam keeps of parameter NAME is stored as `optimizer.exp_avg.NAME` and `optimizer.exp_avg_sq.NAME`, with bf16
parameters also their fp32 values as `optimizer.param.NAME`. Settings come from the config, so a run may change its
optimizer with its layout. (megatron-core's own form of the distributed optimizer's state shifts what follows the first
padded bucket of gradients.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.optimizer import Float16OptimizerWithFloat16Params, MegatronOptimizer
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")


class _Held(NamedTuple):
    """A parameter of the model, what the optimizer updates for it, and where in the flat parameter that lies."""

    parameter: nn.Parameter
    main: Tensor
    run: slice


def sharded_state(optimizer: ChainedOptimizer, parameters: dict[str, Any], loading: bool) -> dict[str, Any]:
    """Return the tensors to save or to read into, by their key, given the sharded parameters by name.

    Every process calls this: the shards of the distributed optimizer are gathered.
    """
    by_parameter = {id(sharded.data): (name, sharded) for name, sharded in parameters.items()}
    state: dict[str, Any] = {}
    for each in optimizer.chained_optimizers:
        _begin(each)
        for kind in _kinds(each):
            for parameter, value in _whole(each, kind, loading):
                name, sharded = by_parameter[id(parameter)]
                key = f"optimizer.{kind}.{name}"
                state[key] = _like(sharded, key, value)
    return state


def restore(optimizer: ChainedOptimizer, state: dict[str, Tensor], names: dict[int, str], updates: int) -> None:
    """Put what was read for `sharded_state` into the optimizer; `names` gives a parameter's name by its id."""
    for each in optimizer.chained_optimizers:
        for kind in _kinds(each):
            for held in _held(each):
                value = state[f"optimizer.{kind}.{names[id(held.parameter)]}"]
                _tensor(each, held, kind).copy_(value.view(-1)[held.run].view(held.main.shape))
        for values in each.optimizer.state.values():
            values["step"] = torch.full_like(values["step"], updates)


def updates(optimizer: ChainedOptimizer) -> int:
    """Return the number of updates that Adam has made."""
    steps = [state["step"] for each in optimizer.chained_optimizers for state in each.optimizer.state.values()]
    return max((int(step) for step in steps), default=0)


def _kinds(optimizer: MegatronOptimizer) -> tuple[str, ...]:
    """Return the kinds of tensors that the optimizer keeps of a parameter."""
    return MOMENTS if optimizer.config.params_dtype == torch.float32 else (*MOMENTS, "param")


def _held(optimizer: MegatronOptimizer) -> Iterator[_Held]:
    """Yield what an optimizer updates in this process."""
    if isinstance(optimizer, DistributedOptimizer):
        for parameter, (group, order) in optimizer.model_param_group_index_map.items():
            run = optimizer._get_model_param_range_map(parameter)["param"]
            main = optimizer.optimizer.param_groups[group]["params"][order]
            yield _Held(parameter, main, slice(run.start, run.end))
        return
    groups = [(group["params"], group["params"]) for group in optimizer.optimizer.param_groups]
    if isinstance(optimizer, Float16OptimizerWithFloat16Params):
        groups = list(zip(optimizer.float16_groups, optimizer.fp32_from_float16_groups, strict=True))
        groups += [(group, group) for group in optimizer.fp32_from_fp32_groups]
    for parameters, mains in groups:
        for parameter, main in zip(parameters, mains, strict=True):
            yield _Held(parameter, main, slice(0, parameter.numel()))


def _tensor(optimizer: MegatronOptimizer, held: _Held, kind: str) -> Tensor:
    return held.main.data if kind == "param" else optimizer.optimizer.state[held.main][kind]


def _whole(optimizer: MegatronOptimizer, kind: str, loading: bool) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield every parameter with its whole tensor of this kind; when loading, an empty one where it is sharded."""
    if not isinstance(optimizer, DistributedOptimizer):
        for held in _held(optimizer):
            yield held.parameter, _tensor(optimizer, held, kind)
        return
    held_here = {id(held.parameter): held for held in _held(optimizer)}
    group = optimizer.data_parallel_group
    for buffer in optimizer.buffers:
        for bucket in buffer.buckets:
            if loading:
                yield from ((p, torch.empty(p.shape, device=p.device)) for p in bucket.params)
                continue
            length = bucket.grad_data.numel() // group.size()
            own_start = bucket.offset + group.rank() * length
            own = torch.zeros(length, device=bucket.grad_data.device)
            for parameter in bucket.params:
                if id(parameter) in held_here:
                    held = held_here[id(parameter)]
                    start = buffer.param_index_map[parameter][0] + held.run.start - own_start
                    own[start : start + held.main.numel()] = _tensor(optimizer, held, kind).view(-1)
            everyone = torch.empty(bucket.grad_data.numel(), device=own.device)
            dist.all_gather_into_tensor(everyone, own, group=group)
            for parameter in bucket.params:
                start, stop, _ = buffer.param_index_map[parameter]
                whole = everyone[start - bucket.offset : stop - bucket.offset].view(parameter.shape)
                yield parameter, whole.cpu()  # a device has room for its own share, and one bucket


def _like(sharded: Any, key: str, value: Tensor) -> ShardedTensor | ShardedTensorFactory:
    """Return the declaration of a parameter, for another tensor of its shape."""
    if isinstance(sharded, ShardedTensorFactory):
        return replace(sharded, key=key, data=value)
    return replace(sharded, key=key, data=value, dtype=value.dtype)


def _begin(optimizer: MegatronOptimizer) -> None:
    """Give what was never updated the state that Adam starts with."""
    adam = optimizer.optimizer
    for group in adam.param_groups:
        for parameter in group["params"]:
            if not adam.state[parameter]:
                adam.state[parameter] = {"step": torch.zeros((), device=parameter.device)}
                adam.state[parameter] |= {kind: torch.zeros_like(parameter.data) for kind in MOMENTS}
