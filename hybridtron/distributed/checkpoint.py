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

from hybridtron.distributed import optimizer_state
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.groups import ParallelContext
from hybridtron.distributed.safe_index import require_safe_index
from hybridtron.errors import UserError
from hybridtron.tensors import TensorSpec


def save(folder: Path, engine: Engine) -> None:
    """Write parameters and optimizer state into the existing, empty folder; every process calls this."""
    _write_in_this_process()
    chunks = _sharded_chunks(engine.chunks, engine.specs, engine.parallel_context)
    optimizer = optimizer_state.sharded_state(engine.optimizer, _flat(chunks), loading=False)
    updates = optimizer_state.updates(engine.optimizer)
    dist_checkpointing.save(chunks | {"optimizer": optimizer, "optimizer_updates": updates}, str(folder))
    dist.barrier()


def load(folder: Path, engine: Engine) -> None:
    """Read parameters and optimizer state, in place."""
    require_safe_index(folder)
    chunks = _sharded_chunks(engine.chunks, engine.specs, engine.parallel_context)
    optimizer = optimizer_state.sharded_state(engine.optimizer, _flat(chunks), loading=True)
    state = _read(chunks | {"optimizer": optimizer}, folder)
    if "optimizer_updates" not in state:
        raise UserError(f"{folder}: damaged: it does not say how often the optimizer has updated")
    for index, chunk in enumerate(engine.chunks):
        chunk.load_state_dict(state[f"model{index}"])
    names = {id(parameter): name for chunk in engine.chunks for name, parameter in chunk.named_parameters()}
    optimizer_state.restore(engine.optimizer, state["optimizer"], names, state["optimizer_updates"])


def load_model(
    folder: Path, chunks: Sequence[nn.Module], specs: dict[str, TensorSpec], parallel_context: ParallelContext
) -> None:
    """Read the parameters alone, in place."""
    require_safe_index(folder)
    _compare(folder, specs)
    state = _read(_sharded_chunks(chunks, specs, parallel_context), folder)
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{index}"])


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
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]  # what one process met
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


def _sharded_chunks(
    chunks: Sequence[nn.Module], specs: dict[str, TensorSpec], parallel_context: ParallelContext
) -> dict[str, Any]:
    return {
        f"model{index}": {
            name: _sharded(name, parameter, specs[name], parallel_context)
            for name, parameter in chunk.named_parameters()
        }
        for index, chunk in enumerate(chunks)
    }


def _flat(chunks: dict[str, Any]) -> dict[str, Any]:
    """The declarations of all chunks' parameters, by name."""
    return {name: tensor for chunk in chunks.values() for name, tensor in chunk.items()}


def _sharded(
    name: str, data: Tensor, spec: TensorSpec, parallel_context: ParallelContext
) -> ShardedTensor | ShardedTensorFactory:
    cuts = [(axis, piece.rank, piece.size) for axis, piece in spec.cuts(parallel_context.shards)]
    # Of equal copies the one with zeros is written: the first stage's, the first of those that hold the same pieces.
    copy_of_stage = 1 if getattr(data, "shared", False) else 0
    uncut_rank = 0 if spec.parts or spec.experts else parallel_context.shards.tensor.rank
    replica_id = (
        copy_of_stage,
        uncut_rank,
        parallel_context.expert_replica_rank if spec.experts else parallel_context.replica_rank,
    )
    if len(spec.parts) <= 1:
        return ShardedTensor.from_rank_offsets(name, data, *cuts, replica_id=replica_id)

    def build(key: str, packed: Tensor, replica_id: Any, flattened_range: Any) -> dict[str, ShardedTensor]:
        pieces = packed.split(spec.local_sizes(parallel_context.shards), spec.axis)
        return {
            part.name: ShardedTensor.from_rank_offsets(f"{key}.{part.name}", piece, *cuts, replica_id=replica_id)
            for part, piece in zip(spec.parts, pieces, strict=True)
        }

    def merge(pieces: dict[str, Tensor]) -> Tensor:
        return torch.cat([pieces[part.name] for part in spec.parts], spec.axis)

    return ShardedTensorFactory(name, data, build, merge, replica_id)
