"""The parts of a model's and an optimizer's tensors that one process holds, as boxes of the whole tensors.

Of equal copies one process writes each element: the copies' flat tensors, one after another, are divided evenly among
the data-parallel replicas, so that all of them write at once. The distributed optimizer divides its state by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from hybridtron.checkpoint_keys import optimizer_key
from hybridtron.distributed.checkpoint.boxes import Box, boxes_of_run, pieces
from hybridtron.distributed.checkpoint.layout import CHUNK_BYTES, Chunk
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.optimizer import state as optimizer_state
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.tensors import Shard, Shards, TensorSpec


@dataclass(frozen=True)
class _Run:
    """The elements [start, start + len(data)) of this process's part of a parameter, or of its optimizer state."""

    key: str
    spec: TensorSpec
    data: Tensor  # flat
    start: int
    is_copy: bool  # of what another process writes
    replica: Shard  # this process among those that hold the same elements and may write them

    @property
    def group(self) -> tuple[bool, Shard]:
        """Return what tells the replicas of this run from other groups of processes."""
        return self.spec.experts, self.replica

    @property
    def size_bytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def part(self, start: int, stop: int) -> _Run:
        """Return the elements [start, stop) of this run."""
        return replace(self, data=self.data[start:stop], start=self.start + start)


def held_chunks(engine: Engine) -> list[Chunk]:
    """Return everything that this process holds, as few boxes as possible, to read into."""
    shards = engine.parallel_context.shards
    return [chunk for run in _runs(engine) for chunk in _chunks(run, shards)]


def owned_chunks(engine: Engine) -> list[Chunk]:
    """Return what this process writes: over all processes, every element of every tensor once."""
    shards = engine.parallel_context.shards
    return [chunk for run in _owned(list(_runs(engine))) for chunk in _chunks(run, shards, CHUNK_BYTES)]


def _runs(engine: Engine) -> Iterator[_Run]:
    """Yield this process's part of every parameter, and of every tensor that the optimizer keeps of it."""
    names = {}
    for chunk in engine.chunks:
        for name, parameter in chunk.named_parameters():
            names[id(parameter)] = name
            yield _run(engine, name, name, parameter, parameter.detach(), 0)
    averages = engine.average.local_tensors() if engine.average else ()
    for state in itertools.chain(optimizer_state.local_tensors(engine.optimizer), averages):
        name = names[id(state.parameter)]
        run = _run(engine, optimizer_key(state.kind, name), name, state.parameter, state.data, state.start)
        yield replace(run, replica=Shard()) if state.is_sharded else run


def _run(engine: Engine, key: str, name: str, parameter: Tensor, data: Tensor, start: int) -> _Run:
    spec, context = engine.specs[name], engine.parallel_context
    # The embedding that the last stage holds too is the first stage's; uncut tensors are the first rank's.
    is_copy = bool(getattr(parameter, "shared", False)) or (not spec.parts and _uncut_rank(spec, context) > 0)
    replica = context.expert_replica if spec.experts else context.replica
    return _Run(key, spec, data.view(-1), start, is_copy, replica)


def _uncut_rank(spec: TensorSpec, context: ParallelContext) -> int:
    """Return this process's rank among those that hold an equal, uncut copy."""
    return (context.shards.expert_tensor if spec.experts else context.shards.tensor).rank


def _owned(runs: list[_Run]) -> Iterator[_Run]:
    """Yield this process's share of each set of copies: an equal run of the bytes of all of them in a row."""
    for group in dict.fromkeys(run.group for run in runs):
        copies, replica = [run for run in runs if run.group == group and not run.is_copy], group[1]
        total = sum(run.size_bytes for run in copies)
        first, last = total * replica.rank // replica.size, total * (replica.rank + 1) // replica.size
        position = 0
        for run in copies:
            width, length = run.data.element_size(), run.data.numel()
            start, stop = (min(max(-((position - edge) // width), 0), length) for edge in (first, last))
            if start < stop:
                yield run.part(start, stop)
            position += run.size_bytes


def _chunks(run: _Run, shards: Shards, most_bytes: int | None = None) -> Iterator[Chunk]:
    """Cut a run into boxes, each box at the borders of the packed parts, and place them in the whole tensors."""
    most = max(1, most_bytes // run.data.element_size()) if most_bytes else run.data.numel()
    position = 0
    for whole_box in boxes_of_run(run.spec.local_shape(shards), run.start, run.start + run.data.numel()):
        for box in pieces(whole_box, most):
            data = run.data[position : position + box.numel].view(box.sizes)
            position += box.numel
            yield from _placed(run, box, data, shards)


def _placed(run: _Run, box: Box, data: Tensor, shards: Shards) -> Iterator[Chunk]:
    """Yield the chunks of the packed parts that a box of the local tensor meets."""
    spec, axis = run.spec, run.spec.axis
    origin = [0] * len(spec.shape)  # of the local tensor in the whole one
    for cut, shard in spec.cuts(shards):
        origin[cut] = shard.rank * (spec.shape[cut] // shard.size)
    if len(spec.parts) <= 1:
        yield Chunk(run.key, spec.shape, _sum(box.offsets, origin), data)
        return
    ways = dict(spec.cuts(shards))[axis]
    local_start = 0
    for part, length in zip(spec.parts, spec.local_sizes(shards), strict=True):
        first = max(box.offsets[axis], local_start)
        stop = min(box.offsets[axis] + box.sizes[axis], local_start + length)
        if first < stop:
            offsets = list(_sum(box.offsets, origin))
            offsets[axis] = ways.rank * length + first - local_start
            shape = (*spec.shape[:axis], part.size, *spec.shape[axis + 1 :])
            view = data.narrow(axis, first - box.offsets[axis], stop - first)
            yield Chunk(f"{run.key}.{part.name}", shape, tuple(offsets), view)
        local_start += length


def _sum(offsets: tuple[int, ...], origin: list[int]) -> tuple[int, ...]:
    return tuple(offset + first for offset, first in zip(offsets, origin, strict=True))
