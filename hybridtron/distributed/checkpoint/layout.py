"""Where each chunk of a process lies in its file, and the index of all files.

A chunk is stored as `torch.save` writes a tensor: a frame around the tensor's own bytes, which depends on its shape
and type alone. So the frames are made once, and a save copies nothing but the tensors' bytes between them.
"""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION, _StorageInfo
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

ALIGNMENT = 64  # bytes; that of a tensor's bytes within what torch.save writes
_switching = threading.Lock()  # of torch's options, which hold for the process
CHUNK_BYTES = 64 * 2**20  # of a stored chunk, at most; a reader holds one at a time


@dataclass(frozen=True)
class Chunk:
    """A box of the whole tensor `key`, and the view of this process's memory that holds it."""

    key: str
    shape: tuple[int, ...]  # of the whole tensor
    offsets: tuple[int, ...]
    data: Tensor


@dataclass(frozen=True)
class Frame:
    """What `torch.save` writes around the bytes of a tensor."""

    header: bytes
    data_bytes: int
    trailer: bytes

    @property
    def length(self) -> int:
        return len(self.header) + self.data_bytes + len(self.trailer)


@dataclass(frozen=True)
class Slot:
    """A chunk's place in the file of its process: `length` bytes from `start`, and padding up to `stop`."""

    chunk: Chunk
    frame: Frame
    start: int

    @property
    def data_start(self) -> int:
        return self.start + len(self.frame.header)

    @property
    def stop(self) -> int:
        return -(-(self.start + self.frame.length) // ALIGNMENT) * ALIGNMENT


class _Recorder:
    """A file of which the bytes around one hole are kept."""

    def __init__(self) -> None:
        self.written: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self.hole = 0

    def write(self, content: bytes) -> int:
        self.written[1 if self.hole else 0].extend(content)
        return len(content)

    def seek(self, offset: int, whence: int) -> None:
        if self.hole or whence != 1:
            raise AssertionError("torch.save of one tensor left more than one hole")
        self.hole = offset

    def flush(self) -> None:
        pass


@functools.lru_cache(maxsize=4096)
def frame_of(dtype: torch.dtype, shape: tuple[int, ...]) -> Frame:
    """Return the frame of a tensor. Its bytes are never allocated."""
    recorder = _Recorder()
    with _switching:
        checksums = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(False)  # those of a zip file would change with the bytes
        try:
            with torch.serialization.skip_data():
                torch.save(torch.empty(shape, dtype=dtype), recorder)  # type: ignore[arg-type]
        finally:
            torch.serialization.set_crc32_options(checksums)
    header, trailer = map(bytes, recorder.written)
    return Frame(header, recorder.hole, trailer)


def slots_of(chunks: Sequence[Chunk]) -> list[Slot]:
    """Place chunks one after another in a file."""
    slots: list[Slot] = []
    for chunk in chunks:
        frame = frame_of(chunk.data.dtype, tuple(chunk.data.shape))
        slots.append(Slot(chunk, frame, slots[-1].stop if slots else 0))
    return slots


def view_of(buffer: Tensor, slot: Slot) -> Tensor:
    """Return the place of a chunk's values in a buffer that has the bytes of the whole file."""
    raw = buffer[slot.data_start : slot.data_start + slot.frame.data_bytes]
    return raw.view(slot.chunk.data.dtype).view(slot.chunk.data.shape)


def plan_of(slots: Sequence[Slot]) -> SavePlan:
    """Describe a process's chunks and their places, without the tensors, for the process that writes the index."""
    items = [
        WriteItem(
            MetadataIndex(slot.chunk.key, torch.Size(slot.chunk.offsets)),
            WriteItemType.SHARD,
            tensor_data=TensorWriteData(
                ChunkStorageMetadata(torch.Size(slot.chunk.offsets), slot.chunk.data.shape),
                TensorProperties(slot.chunk.data.dtype),
                torch.Size(slot.chunk.shape),
            ),
        )
        for slot in slots
    ]
    return SavePlan(items, storage_data=[(slot.start, slot.frame.length, slot.stop) for slot in slots])


def file_name(rank: int) -> str:
    """Return the name of the file of a process."""
    return f"__{rank}_0.distcp"


def index_of(plans: Sequence[SavePlan]) -> bytes:
    """Return the content of `.metadata`, from the plans of all processes.

    Raises ValueError where their chunks overlap or leave a hole.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    merged, index = planner.create_global_plan(list(plans))
    index.storage_data = {
        item.index: _StorageInfo(file_name(rank), start, length)
        for rank, plan in enumerate(merged)
        for item, (start, length, _) in zip(plan.items, plan.storage_data, strict=True)
    }
    index.version = CURRENT_DCP_VERSION
    return pickle.dumps(index)
