"""Checkpoints through megatron-core's dist_checkpointing: saved in one layout, loaded in any other.

A parameter that packs several parts is stored part by part under `name.part`, whole, as its `TensorSpec` declares.
"""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import serialization
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy
from torch import Tensor, nn

from hybridtron.checkpoint_reader import loading
from hybridtron.distributed import optimizer_state
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.groups import ParallelContext
from hybridtron.errors import cause_of
from hybridtron.tensors import TensorSpec

logger = logging.getLogger(__name__)


def save(folder: Path, engine: Engine) -> None:
    """Write parameters and optimizer state into the existing, empty folder; every process calls this.

    Where a file cannot be written, an exception says so in the process that wrote it, and none waits for another.
    """
    _write_in_this_process()
    chunks = _sharded_chunks(engine.chunks, engine.specs, engine.parallel_context)
    optimizer = optimizer_state.sharded_state(engine.optimizer, _flat(chunks), loading=False)
    updates = optimizer_state.updates(engine.optimizer)
    with _raising_at_the_end():
        dist_checkpointing.save(chunks | {"optimizer": optimizer, "optimizer_updates": updates}, str(folder))
    dist.barrier()
    logger.debug("saved %s", folder)


def load(folder: Path, engine: Engine) -> None:
    """Read parameters and optimizer state into the engine; UserError for a damaged checkpoint."""
    chunks = _sharded_chunks(engine.chunks, engine.specs, engine.parallel_context)
    optimizer = optimizer_state.sharded_state(engine.optimizer, _flat(chunks), loading=True)
    with loading(folder):
        state = dist_checkpointing.load(chunks | {"optimizer": optimizer}, str(folder))
        updates = state.get("optimizer_updates")
        if not isinstance(updates, int):
            raise ValueError(f"optimizer_updates is {updates!r}; expected a whole number")
        for index, chunk in enumerate(engine.chunks):
            chunk.load_state_dict(state[f"model{index}"])
        names = {id(parameter): name for chunk in engine.chunks for name, parameter in chunk.named_parameters()}
        optimizer_state.restore(engine.optimizer, state["optimizer"], names, updates)


def _write_in_this_process() -> None:
    """Make megatron-core write checkpoints in the calling process.

    It forks writers that it waits for without looking whether they live, and spawns a manager process for their
    answers. A synchronous save needs neither: where a writer dies, so does the run, instead of hanging.
    """
    filesystem_async._results_queue = queue.Queue()
    filesystem_async.FileSystemWriterAsync.write_preloaded_data_multiproc = staticmethod(_write_buckets)


@contextlib.contextmanager
def _raising_at_the_end() -> Iterator[None]:
    """Let the first process raise, only where the block ends, what goes wrong with the files that it alone writes.

    Raised where it happens, it would leave the other processes waiting at megatron-core's next collective.
    """
    failures: list[Exception] = []

    def deferred(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> None:
            try:
                write(*arguments)
            except (OSError, RuntimeError) as error:
                failures.append(error)

        return call

    writers = (
        (TorchCommonSaveStrategy, "save_common"),
        (filesystem_async.FileSystemWriterAsync, "finish"),
        (serialization, "save_config"),
    )
    with contextlib.ExitStack() as patched:
        for owner, name in writers:
            patched.enter_context(patch.object(owner, name, deferred(getattr(owner, name))))
        yield
    if failures:
        raise failures[0]


def _write_buckets(
    transforms: list[Any], use_msc: bool, rank: int, buckets: Sequence[Any], results: queue.Queue[Any]
) -> None:
    """Write every bucket and put {index: results}, or the exception of the first that failed."""
    written: dict[int, Any] = {}
    for index, bucket in enumerate(buckets):
        answers: queue.Queue[Any] = queue.Queue()
        pending: queue.Queue[Any] = queue.Queue()
        pending.put(index)
        filesystem_async.FileSystemWriterAsync.write_preloaded_data(
            transforms, index, bucket, answers, pending, use_fsync=True, use_msc=use_msc
        )
        _, written_files = answers.get()
        if isinstance(written_files, Exception):
            results.put(OSError(0, cause_of(written_files)))  # the cause is lost where exceptions are gathered
            return
        written[index] = written_files
    results.put(written)


def _sharded_chunks(
    chunks: Sequence[nn.Module], specs: dict[str, TensorSpec], parallel_context: ParallelContext
) -> dict[str, Any]:
    """Declare the parameters of each chunk for dist_checkpointing."""
    return {
        f"model{index}": {
            name: _sharded(name, parameter, specs[name], parallel_context)
            for name, parameter in chunk.named_parameters()
        }
        for index, chunk in enumerate(chunks)
    }


def _flat(chunks: dict[str, Any]) -> dict[str, Any]:
    """Collect the declarations of all chunks' parameters, by name."""
    return {name: tensor for chunk in chunks.values() for name, tensor in chunk.items()}


def _sharded(
    name: str, data: Tensor, spec: TensorSpec, parallel_context: ParallelContext
) -> ShardedTensor | ShardedTensorFactory:
    """Declare a parameter, of which this process holds one shard, for dist_checkpointing; packed parts one by one."""
    cuts = [(axis, shard.rank, shard.size) for axis, shard in spec.cuts(parallel_context.shards)]
    # Of equal copies the one with zeros is written: the first stage's, the first of those that hold the same shards.
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
        parts = packed.split(spec.local_sizes(parallel_context.shards), spec.axis)
        return {
            part.name: ShardedTensor.from_rank_offsets(f"{key}.{part.name}", local, *cuts, replica_id=replica_id)
            for part, local in zip(spec.parts, parts, strict=True)
        }

    def merge(parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([parts[part.name] for part in spec.parts], spec.axis)

    return ShardedTensorFactory(name, data, build, merge, replica_id)
