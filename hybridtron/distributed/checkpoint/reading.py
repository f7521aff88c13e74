"""Reading a checkpoint into an engine, whichever layout wrote it: each process what it holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from hybridtron.checkpoint_keys import EMA, FLOAT32_VALUES, OPTIMIZER, optimizer_key
from hybridtron.checkpoint_reader import expected_shapes, loading, read_common, stored_shapes
from hybridtron.distributed.checkpoint import manifest
from hybridtron.distributed.checkpoint.chunks import held_chunks
from hybridtron.distributed.checkpoint.layout import Chunk
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.optimizer import state as optimizer_state
from hybridtron.distributed.process_groups.groups import call_everywhere
from hybridtron.errors import UserError
from hybridtron.initial_weights import MatchedWeights, WeightRules, match_weights
from hybridtron.safe_index import shape_text


def load(folder: Path, engine: Engine, verify: manifest.Verify = "full") -> None:
    """Read parameters and optimizer state into the engine; every process calls this.

    Args:
        folder: the checkpoint.
        engine: of the same model, in any layout.
        verify: how much of the checkpoint is compared with its checksums first; the processes share the reading.

    Raises:
        DamagedCheckpoint: in all processes, where one of them finds it damaged and all can read it.
        UserError: in all processes, where it is of another model or format.
        OSError: in all processes, where the system of one of them cannot read it or has no memory for it.
    """
    context = engine.parallel_context
    call_everywhere(lambda: manifest.verify(folder, verify, (context.rank, context.world_size)))
    call_everywhere(lambda: _read(folder, engine))


def load_weights(
    folder: Path, engine: Engine, verify: manifest.Verify = "full", rules: WeightRules | None = None
) -> MatchedWeights:
    """Read the parameters alone into the engine, and into the fp32 copies that its optimizer keeps of narrower ones.

    Arguments and exceptions are those of `load`. Number formats may differ; the checkpoint must have exactly the
    parameters of the model, but for what `rules` allow: a UserError has a line for each parameter that differs. Returns
    which parameter was read from which; those without a source keep the values that the engine has.
    """
    context = engine.parallel_context
    call_everywhere(lambda: manifest.verify(folder, verify, (context.rank, context.world_size)))
    stored = call_everywhere(lambda: _stored_shapes(folder))
    try:
        matched = match_weights(stored, expected_shapes(engine.specs), rules or WeightRules())
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    call_everywhere(lambda: _read_weights(folder, engine, matched, stored))
    if engine.average:
        engine.average.begin()
    return matched


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    with loading(folder) as index:
        return stored_shapes(index)


def _read_weights(folder: Path, engine: Engine, matched: MatchedWeights, stored: Mapping[str, tuple[int, ...]]) -> None:
    """Read the parameters that this process holds, and its fp32 copies."""
    chunks = []
    for held in held_chunks(engine):
        source = matched.sources.get(held.key.removeprefix(optimizer_key(FLOAT32_VALUES)))
        if source is not None and (chunk := _in_source(held, source, stored[source])):
            chunks.append(chunk)
    with loading(folder) as index:
        _read_chunks(folder, index, chunks)


def _in_source(chunk: Chunk, source: str, shape: tuple[int, ...]) -> Chunk | None:
    """Return the part of a chunk that another tensor has, as a chunk of that; None where it has none of its rows."""
    rows = min(chunk.data.shape[0], shape[0] - chunk.offsets[0])
    return Chunk(source, shape, chunk.offsets, chunk.data.narrow(0, 0, rows)) if rows > 0 else None


def _read(folder: Path, engine: Engine) -> None:
    """Read what this process holds."""
    with loading(folder) as index:
        common = read_common(folder)
        updates = common.get("optimizer_updates")
        if type(updates) is not int:
            raise ValueError(f"optimizer_updates is {updates!r}; expected a whole number")
        prefix = optimizer_key(EMA)
        averaged = any(key.startswith(prefix) for key in index.state_dict_metadata)
        held = [chunk for chunk in held_chunks(engine) if averaged or not chunk.key.startswith(prefix)]
        _read_chunks(folder, index, held)
        optimizer_state.set_updates(engine.optimizer, updates)
        if engine.average:
            engine.average.updates = updates
            if not averaged:  # the run did not average before
                engine.average.begin()
        if engine.fp8:  # a checkpoint of another number format has no state of it
            engine.fp8.state.load_state_dict(common.get("fp8", {"amax_history": {}}))


def _read_chunks(folder: Path, index: Metadata, chunks: Iterable[Chunk]) -> None:
    """Read these chunks of a checkpoint's tensors, wherever they lie."""
    planner, reader = _ChunkPlanner(folder, chunks), FileSystemReader(folder)
    planner.set_up_planner({}, index)
    reader.set_up_storage_reader(index, is_coordinator=False)
    reader.read_data(planner.create_local_plan(), planner).wait()


class _ChunkPlanner(DefaultLoadPlanner):
    """Plan to read those parts of the stored chunks that this process holds, in the order of the files."""

    def __init__(self, folder: Path, chunks: Iterable[Chunk]) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.folder = folder
        self.chunks: dict[str, list[Chunk]] = {}
        for chunk in chunks:
            self.chunks.setdefault(chunk.key, []).append(chunk)

    def create_local_plan(self) -> LoadPlan:
        index: Metadata | None = self.metadata
        assert index is not None
        assert index.storage_data is not None
        items = []
        self.chunks = {self._stored_key(index, key): chunks for key, chunks in self.chunks.items()}
        for key, chunks in self.chunks.items():
            boxes = [ChunkStorageMetadata(torch.Size(chunk.offsets), chunk.data.size()) for chunk in chunks]
            items += create_read_items_for_chunk_list(key, self._entry(index, key, chunks[0]), boxes)
        places = index.storage_data
        items.sort(key=lambda item: (places[item.storage_index].relative_path, places[item.storage_index].offset))
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        assert index.index is not None
        return self.chunks[index.fqn][index.index].data

    def _stored_key(self, index: Metadata, key: str) -> str:
        """Return the key to read a tensor from: where a parameter was bf16 and is fp32 now, that of its fp32 values."""
        values = optimizer_key(FLOAT32_VALUES, key)
        return values if values in index.state_dict_metadata and values not in self.chunks else key

    def _entry(self, index: Metadata, key: str, chunk: Chunk) -> TensorStorageMetadata:
        """Return what the index says of a tensor. Raises UserError where it is missing or has another shape."""
        entry = index.state_dict_metadata.get(key)
        if entry is None and not any(name.startswith(OPTIMIZER) for name in index.state_dict_metadata):
            raise UserError(
                f"{self.folder}: has no optimizer state to resume from; expected a new run that begins with its "
                f"weights, by train.init_from={self.folder}"
            )
        if not isinstance(entry, TensorStorageMetadata) or tuple(entry.size) != chunk.shape:
            there = shape_text(tuple(entry.size)) if isinstance(entry, TensorStorageMetadata) else "absent"
            raise UserError(
                f"{self.folder}: tensor {key} is {there} there; expected {shape_text(chunk.shape)}, as its config says"
            )
        return entry
