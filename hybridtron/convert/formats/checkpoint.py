"""Checkpoints of training as source and sink: read box by box, written as `distributed.checkpoint` writes them.

The chunks of a checkpoint are frames of torch.save around the bytes of a box. Where a frame is the one that this torch
writes, which it is in checkpoints with a manifest, only the bytes of the box asked for are read. Any other chunk is
loaded whole, as weights only.
"""

from __future__ import annotations

import io
import itertools
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan

from hybridtron.checkpoint_keys import OPTIMIZER
from hybridtron.checkpoint_reader import loading, read_common
from hybridtron.convert.formats.byte_runs import bytes_of, common_runs, new_tensor, read_at, read_runs, write_at
from hybridtron.convert.formats.folder_sink import FolderSink
from hybridtron.convert.formats.source import Shape, TensorInfo, boxes
from hybridtron.distributed.checkpoint import manifest
from hybridtron.distributed.checkpoint.boxes import Box
from hybridtron.distributed.checkpoint.completing import complete
from hybridtron.distributed.checkpoint.layout import (
    Chunk,
    Frame,
    Slot,
    file_name,
    frame_of,
    index_of,
    plan_of,
    slots_of,
)
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError, unreadable
from hybridtron.files import open_to_read
from hybridtron.safe_index import loading_weights_only

BLOCK = 8 * 2**20  # bytes that are read at once to compute a checksum

StoredBox = tuple[str, Box]
"""The key of a stored tensor, and a box of it."""


class CheckpointSource:
    """The tensors of a checkpoint folder; see `Source`.

    Args:
        folder: the checkpoint.
        verify: how much of it is compared with its checksums: each chunk that is read, when it is read, a sample at
            once, or nothing. Small files are compared at once.
        optimizer: offer the optimizer's tensors too, not the parameters alone.

    Raises:
        UserError: where the folder is no checkpoint, or is damaged.
        OSError: where the system cannot read it.
    """

    def __init__(self, folder: Path, verify: Verify = "full", optimizer: bool = False) -> None:
        self.folder = folder
        self._unverified = _unverified(folder) if verify == "full" else {}
        if verify == "sampled":
            manifest.verify(folder, verify)
        with loading(folder) as index:
            common = read_common(folder)
            self.updates, self.fp8 = int(common.get("optimizer_updates", 0)), common.get("fp8")
            self._take(index, lambda key: optimizer or not key.startswith(OPTIMIZER))

    def _take(self, index: Metadata, offered: Callable[[str], bool]) -> None:
        """Offer the tensors of an index."""
        entries = {
            key: entry
            for key, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and offered(key)
        }
        self.tensors = {key: TensorInfo(tuple(e.size), e.properties.dtype) for key, e in entries.items()}
        self.chunks = {key: _placed(index, key, entry) for key, entry in entries.items()}
        self._loaded: tuple[_StorageInfo, Tensor] | None = None

    @property
    def files(self) -> list[str]:
        """The files that hold tensors: one for each process that wrote any."""
        return sorted({place.relative_path for chunks in self.chunks.values() for _, place in chunks})

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a tensor; see `Source.read`."""
        info = self.tensors[name]
        wanted = Box(offsets or (0,) * len(info.shape), info.shape if sizes is None else sizes)
        values = new_tensor(wanted.sizes, info.dtype)
        for box, place in self.chunks[name]:
            runs = common_runs(box, wanted)
            if (first := next(runs, None)) is None:
                continue
            starts = [a - b for a, b in zip(box.offsets, wanted.offsets, strict=True)]
            index = tuple(slice(start, start + size) for start, size in zip(starts, box.sizes, strict=True))
            if first[2] < box.numel and values[index].shape == box.sizes and min(starts, default=0) >= 0:
                chunk = new_tensor(box.sizes, info.dtype)  # wanted whole, but not in one run
                self._read_chunk(info.dtype, box, place, iter([(0, 0, box.numel)]), bytes_of(chunk))
                values[index] = chunk
            else:
                self._read_chunk(info.dtype, box, place, itertools.chain([first], runs), bytes_of(values))
        return values

    def _read_chunk(
        self,
        dtype: torch.dtype,
        box: Box,
        place: _StorageInfo,
        runs: Iterator[tuple[int, int, int]],
        memory: memoryview,
    ) -> None:
        """Read runs of a chunk into the memory of a box."""
        path, frame, width = self.folder / place.relative_path, frame_of(dtype, box.sizes), dtype.itemsize
        part = self._unverified.pop((place.relative_path, place.offset), None)
        found = list(runs)
        try:
            with open_to_read(path) as file:
                header = bytearray(len(frame.header))
                if place.length == frame.length:
                    read_at(file.fileno(), place.offset, memoryview(header))
                if header == frame.header:
                    read_runs(file.fileno(), place.offset + len(header), found, width, memory)
                    if part:
                        stored, held, length = found[0]
                        is_whole = length * width == frame.data_bytes
                        content = memory[held * width : (held + length) * width] if is_whole else None
                        _verify_chunk(path, file.fileno(), part, frame, content)
                    return
            if part:
                manifest.verify_parts(path, [part])
            loaded = bytes_of(self._load(dtype, box, place))
        except UserError:
            raise
        except Exception as error:
            raise unreadable(path, error) from None
        for stored, held, length in found:
            memory[held * width : (held + length) * width] = loaded[stored * width : (stored + length) * width]

    def _load(self, dtype: torch.dtype, box: Box, place: _StorageInfo) -> Tensor:
        """Load a chunk that has another frame, whole. The last one is kept."""
        loaded = self._loaded
        if loaded is None or loaded[0] is not place:
            loaded = self._loaded = None
            with open_to_read(self.folder / place.relative_path) as file:
                content = bytearray(place.length)
                read_at(file.fileno(), place.offset, memoryview(content))
            with loading_weights_only():
                tensor = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if not isinstance(tensor, Tensor) or tensor.dtype != dtype or tuple(tensor.shape) != box.sizes:
                raise ValueError(f"holds something else at byte {place.offset} than its index says")
            loaded = self._loaded = place, tensor.contiguous()
        return loaded[1]


def _unverified(folder: Path) -> dict[tuple[str, int], manifest.StoredTensor]:
    """Compare the small files of a checkpoint with their checksums; return its chunks, by file and first byte."""
    files = manifest.checked_sizes(folder)
    for name, file in files.items():
        if not file.tensors:
            manifest.verify_parts(folder / name, [manifest.StoredTensor("", (), 0, file.size, file.crc32)])
    return {(name, part.start): part for name, file in files.items() for part in file.tensors}


def _verify_chunk(
    path: Path, descriptor: int, part: manifest.StoredTensor, frame: Frame, content: memoryview | None
) -> None:
    """Compare a chunk with its checksum, whose bytes may just have been read whole. Raises DamagedCheckpoint."""
    if content is not None:
        start = part.start + len(frame.header) + frame.data_bytes
        trailer = bytearray(part.start + part.length - start)
        read_at(descriptor, start, memoryview(trailer))
        if _checksum(frame.header, content, trailer) == part.crc32:
            return
    manifest.verify_parts(path, [part])
    if content is not None:
        raise ValueError(f"gave other bytes of tensor {part.tensor} when it was read again")


def _placed(index: Metadata, key: str, entry: TensorStorageMetadata) -> list[tuple[Box, _StorageInfo]]:
    """Return the chunks of a tensor, and where each of them lies. Raises KeyError where one lies nowhere."""
    places = index.storage_data or {}
    return [
        (Box(tuple(chunk.offsets), tuple(chunk.sizes)), places[MetadataIndex(key, chunk.offsets)])
        for chunk in entry.chunks
    ]


@dataclass
class _SlotState:
    """A chunk that is being written: the file it goes into, and its checksum once that is known."""

    slot: Slot
    file: int
    is_begun: bool = False
    checksum: int | None = None

    @property
    def box(self) -> Box:
        return Box(self.slot.chunk.offsets, tuple(self.slot.chunk.data.shape))

    @property
    def padding(self) -> bytes:
        return bytes(self.slot.stop - self.slot.start - self.slot.frame.length)


class CheckpointSink(FolderSink):
    """A checkpoint folder that is being written; see `Sink`. It is what training itself writes.

    Args:
        folder: to make.
        tensors: every stored tensor, by key, in the order in which it is stored.
        extra: content of further small files by name, such as train_state.json.
        files: what each file holds, in order, at most CHUNK_BYTES in a box; by default all of it in one file. See
            `divided`.
        updates: number of updates that the optimizer has made.
        fp8: state of FP8 linears, as `CheckpointSource.fp8` has it.
        progress: called with the number of bytes of tensors written so far.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        extra: Mapping[str, bytes] | None = None,
        files: Sequence[Sequence[StoredBox]] | None = None,
        updates: int = 0,
        progress: Callable[[int], None] | None = None,
        fp8: Mapping[str, Any] | None = None,
    ) -> None:
        contents = files if files is not None else divided(tensors)
        self.slots = [slots_of([_chunk(tensors, key, box) for key, box in content]) for content in contents]
        super().__init__(folder, tensors, sum(slots[-1].stop for slots in self.slots if slots), progress)
        self.extra, self.updates, self.fp8 = dict(extra or {}), updates, fp8
        self._states: list[list[_SlotState]] = []
        self._by_key: dict[str, list[_SlotState]] = {}
        self._file_of: list[int] = []  # descriptors, -1 for a process without tensors

    def add_file(self, name: str, content: bytes) -> None:
        """Write a further small file, which the manifest names; see `Sink.add_file`."""
        self.extra[name] = content

    def _begin(self) -> None:
        self._file_of = [self._new_file(file_name(rank)) if slots else -1 for rank, slots in enumerate(self.slots)]
        self._states = [[_SlotState(slot, rank) for slot in slots] for rank, slots in enumerate(self.slots)]
        for state in itertools.chain.from_iterable(self._states):
            self._by_key.setdefault(state.slot.chunk.key, []).append(state)

    def _put(self, name: str, box: Box, content: memoryview) -> None:
        width = self.tensors[name].dtype.itemsize
        for state in self._by_key[name]:
            runs = list(common_runs(state.box, box))
            if not runs:
                continue
            descriptor, slot = self._file_of[state.file], state.slot
            header, trailer = slot.frame.header, slot.frame.trailer + state.padding
            views = [(stored, content[held * width : (held + length) * width]) for stored, held, length in runs]
            if len(views) == 1 and len(views[0][1]) == slot.frame.data_bytes:
                state.checksum = _checksum(header, views[0][1], trailer)
            if not state.is_begun:
                write_at(descriptor, slot.start, header)
                write_at(descriptor, slot.data_start + slot.frame.data_bytes, trailer)
                state.is_begun = True
            for stored, view in views:
                write_at(descriptor, slot.data_start + stored * width, view)

    def _complete(self) -> None:
        checksums = [[self._checksum(state) for state in states] for states in self._states]
        for descriptor in self._descriptors:
            os.fsync(descriptor)
        plans = [plan_of(slots) for slots in self.slots]
        complete(self.draft, self._index(plans), plans, checksums, self.updates, self.extra, self.fp8)

    def _index(self, plans: Sequence[SavePlan]) -> bytes:
        """Return the content of `.metadata`."""
        return index_of(plans)

    def _checksum(self, state: _SlotState) -> int:
        """Return the checksum of a chunk; of one that was written in pieces, by reading it."""
        if state.checksum is not None:
            return state.checksum
        crc, slot = 0, state.slot
        for start in range(slot.start, slot.stop, BLOCK):
            block = bytearray(min(BLOCK, slot.stop - start))
            read_at(self._file_of[state.file], start, memoryview(block))
            crc = zlib.crc32(block, crc)
        return crc


def divided(tensors: Mapping[str, TensorInfo], files: int = 1) -> list[list[StoredBox]]:
    """Divide tensors, in their order, into boxes of at most CHUNK_BYTES and these evenly into so many files."""
    contents: list[list[StoredBox]] = [[] for _ in range(files)]
    total, position = max(sum(info.size_bytes for info in tensors.values()), 1), 0
    for key, box in boxes_of(tensors):
        contents[min(position * files // total, files - 1)].append((key, box))
        position += box.numel * tensors[key].dtype.itemsize
    return contents


def boxes_of(tensors: Mapping[str, TensorInfo]) -> Iterator[StoredBox]:
    """Cut tensors, in their order, into boxes of at most CHUNK_BYTES."""
    return ((key, box) for key, info in tensors.items() for box in boxes(info))


def _chunk(tensors: Mapping[str, TensorInfo], key: str, box: Box) -> Chunk:
    """Return a chunk without its values."""
    info = tensors[key]
    return Chunk(key, info.shape, box.offsets, torch.empty(box.sizes, dtype=info.dtype, device="meta"))


def _checksum(*contents: bytes | bytearray | memoryview) -> int:
    """Return the CRC-32 of contents, one after another."""
    crc = 0
    for content in contents:
        crc = zlib.crc32(content, crc)
    return crc
