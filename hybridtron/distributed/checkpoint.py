"""Checkpoints through megatron-core's dist_checkpointing: saved in one layout, loaded in any other.

A parameter that packs several parts is stored part by part under `name.part`, whole, as its `TensorSpec` declares.
"""

from __future__ import annotations

import queue
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from hybridtron.distributed.engine import Engine
from hybridtron.distributed.groups import Place
from hybridtron.distributed.vetting import vet
from hybridtron.errors import UserError
from hybridtron.tensors import TensorSpec


def save(folder: Path, engine: Engine) -> None:
    """Write parameters and optimizer state into the existing, empty folder; every process calls this."""
    _write_in_this_process()
    model = _sharded_model(engine.model, engine.specs, engine.place)
    state = {"model": model, "optimizer": engine.optimizer.sharded_state_dict(model, metadata=_metadata())}
    dist_checkpointing.save(state, str(folder), content_metadata=_metadata())
    dist.barrier()


def load(folder: Path, engine: Engine) -> None:
    """Read parameters and optimizer state, in place."""
    vet(folder)
    model = _sharded_model(engine.model, engine.specs, engine.place)
    optimizer = engine.optimizer.sharded_state_dict(model, is_loading=True, metadata=_metadata())
    state = _read({"model": model, "optimizer": optimizer}, folder)
    engine.model.load_state_dict(state["model"])
    engine.optimizer.load_state_dict(state["optimizer"])


def load_model(folder: Path, model: nn.Module, specs: dict[str, TensorSpec], place: Place) -> None:
    """Read the parameters alone, in place."""
    vet(folder)
    _compare(folder, specs)
    state = _read({"model": _sharded_model(model, specs, place)}, folder)
    model.load_state_dict(state["model"])


def _read(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fill the sharded state; UserError where the files are damaged."""
    try:
        return dist_checkpointing.load(state, str(folder))
    except (Exception, CheckpointException) as error:  # whatever layer found the damage
        raise UserError(f"{folder}: damaged: {_first_line(error)}") from None


def _compare(folder: Path, specs: dict[str, TensorSpec]) -> None:
    """UserError where the checkpoint's parameters are not those declared, by name and whole shape."""
    try:
        stored = dist_checkpointing.load_tensors_metadata(str(folder))
    except Exception as error:
        raise UserError(f"{folder}: damaged: {_first_line(error)}") from None
    held = {key: tuple(t.global_shape) for key, t in stored.items() if not key.startswith("optimizer.")}
    wanted: dict[str, tuple[int, ...]] = {}
    for name, spec in specs.items():
        if len(spec.parts) > 1:
            before, after = spec.shape[: spec.axis], spec.shape[spec.axis + 1 :]
            wanted |= {f"{name}.{part.name}": (*before, part.size, *after) for part in spec.parts}
        else:
            wanted[name] = spec.shape
    for name in sorted(held.keys() | wanted.keys()):
        if held.get(name) != wanted.get(name):
            raise UserError(
                f"{folder}: parameter {name} is {_shape(held.get(name))} there; expected "
                f"{_shape(wanted.get(name))}, as its config says"
            )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else " x ".join(map(str, shape))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _write_in_this_process() -> None:
    """megatron-core forks writers that it waits for without looking whether they live, and spawns a manager process for
    their answers. A synchronous save needs neither: where a writer dies, so does the run, instead of hanging."""
    filesystem_async._results_queue = queue.Queue()
    filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write_buckets)


def _write_buckets(
    transforms: list[Any], use_msc: bool, rank: int, buckets: Sequence[Any], results: queue.Queue
) -> None:
    """Write every bucket and put {index: results}, or the exception of the first that failed."""
    written: dict[int, Any] = {}
    for index, bucket in enumerate(buckets):
        answers: queue.Queue = queue.Queue()
        pending: queue.Queue = queue.Queue()
        pending.put(index)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, index, bucket, answers, pending, use_fsync=True, use_msc=use_msc
        )
        _, outcome = answers.get()
        if isinstance(outcome, Exception):
            results.put(outcome)
            return
        written[index] = outcome
    results.put(written)


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
