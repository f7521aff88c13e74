"""Checkpoints through megatron-core's dist_checkpointing: saved in one layout, loaded in any other.

A parameter that packs several parts is stored part by part under `name.part`, whole, as its `TensorSpec` declares.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor, nn

from hybridtron.distributed.engine import Engine
from hybridtron.distributed.groups import Place
from hybridtron.distributed.vetting import vet
from hybridtron.tensors import TensorSpec


def save(folder: Path, engine: Engine) -> None:
    """Write parameters and optimizer state into the existing, empty folder; every process calls this."""
    # By default writers report through a spawned manager process, seconds to start; only asynchronous saves need one.
    filesystem_async._results_queue = queue.Queue()
    model = _sharded_model(engine.model, engine.specs, engine.place)
    state = {"model": model, "optimizer": engine.optimizer.sharded_state_dict(model, metadata=_metadata())}
    dist_checkpointing.save(state, str(folder), content_metadata=_metadata())
    dist.barrier()


def load(folder: Path, engine: Engine) -> None:
    """Read parameters and optimizer state, in place."""
    vet(folder)
    model = _sharded_model(engine.model, engine.specs, engine.place)
    optimizer = engine.optimizer.sharded_state_dict(model, is_loading=True, metadata=_metadata())
    state = dist_checkpointing.load({"model": model, "optimizer": optimizer}, str(folder))
    engine.model.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])


def load_model(folder: Path, model: nn.Module, specs: dict[str, TensorSpec], place: Place) -> None:
    """Read the parameters alone, in place."""
    vet(folder)
    state = dist_checkpointing.load({"model": _sharded_model(model, specs, place)}, str(folder))
    model.load_state_dict(state["model"])


def _metadata() -> dict[str, Any]:
    return {"chained_optim_avoid_prefix": True}


def _sharded_model(model: nn.Module, specs: dict[str, TensorSpec], place: Place) -> dict[str, Any]:
    return {name: _sharded(name, parameter, specs[name], place) for name, parameter in model.named_parameters()}


def _sharded(name: str, data: Tensor, spec: TensorSpec, place: Place) -> ShardedTensor | ShardedTensorFactory:
    if not spec.sharded:
        return ShardedTensor.from_rank_offsets(name, data, replica_id=(0, place.tensor_rank, place.data_rank))
    replica_id = (0, 0, place.data_rank)
    cut = (spec.axis, place.tensor_rank, place.tensor_size)
    if len(spec.parts) == 1:
        return ShardedTensor.from_rank_offsets(name, data, cut, replica_id=replica_id)

    def build(key: str, packed: Tensor, replica_id: Any, flattened_range: Any) -> dict[str, ShardedTensor]:
        pieces = packed.split(spec.local_sizes(place.tensor_size), spec.axis)
        return {
            part.name: ShardedTensor.from_rank_offsets(f"{key}.{part.name}", piece, cut, replica_id=replica_id)
            for part, piece in zip(spec.parts, pieces, strict=True)
        }

    def merge(pieces: dict[str, Tensor]) -> Tensor:
        return torch.cat([pieces[part.name] for part in spec.parts], spec.axis)

    return ShardedTensorFactory(name, data, build, merge, replica_id)
