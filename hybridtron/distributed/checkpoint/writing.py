"""Writing a checkpoint: staged in host memory, written by each process, completed by the first.

`prepare` and `gather` are collective and belong to the main thread. `stage` is quick and local: when it returns, the
tensors may change again. `write` and `complete` only touch files, and may run in a thread.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.planner import SavePlan

from hybridtron.distributed.checkpoint.chunks import owned_chunks
from hybridtron.distributed.checkpoint.completing import complete
from hybridtron.distributed.checkpoint.layout import Slot, file_name, index_of, plan_of, slots_of, view_of
from hybridtron.distributed.engine import Engine
from hybridtron.distributed.optimizer import state as optimizer_state
from hybridtron.distributed.process_groups.groups import call_everywhere
from hybridtron.files import open_to_write, write_all

BLOCK = 16 * 2**20  # bytes that are written at once


class CheckpointWriter:
    """Write checkpoints of an engine. What does not change between them is planned at the first.

    It keeps one buffer in host memory, as large as the file of this process, and pinned where there is a GPU.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rank = engine.parallel_context.rank
        self.slots: list[Slot] | None = None
        self.plans: list[SavePlan] = []  # of all processes, in the first
        self.index = b""
        self.buffer: Tensor | None = None
        self.updates = 0
        self.fp8: dict[str, Any] | None = None  # state of FP8 linears, the same in all processes

    def prepare(self) -> None:
        """Plan, at the first call, what every process writes. All processes call this.

        Raises RuntimeError, or an error of the system, in all of them where one cannot plan.
        """
        if self.slots is not None:
            return

        def plan() -> tuple[list[Slot], SavePlan]:
            slots = slots_of(owned_chunks(self.engine))
            return slots, plan_of(slots)

        slots, mine = call_everywhere(plan)
        plans: list[Any] | None = [None] * dist.get_world_size() if self.rank == 0 else None
        dist.gather_object(mine, plans)
        self.index = call_everywhere(lambda: index_of(plans) if plans else b"")
        self.slots, self.plans = slots, plans or []

    def stage(self) -> None:
        """Copy what this process writes into its buffer. Raises RuntimeError where there is no memory for it."""
        assert self.slots is not None
        if self.buffer is None:
            self.buffer = self._new_buffer(self.slots)
        self.engine.gathers.wait()
        for slot in self.slots:
            view_of(self.buffer, slot).copy_(slot.chunk.data, non_blocking=True)
        if self.engine.parallel_context.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.updates = optimizer_state.updates(self.engine.optimizer)
        self.fp8 = self.engine.fp8.state.state_dict() if self.engine.fp8 else None

    def write(self, folder: Path) -> list[int]:
        """Write the staged file of this process; return the checksum of each of its chunks. Raises OSError."""
        assert self.slots is not None
        assert self.buffer is not None
        if not self.slots:
            return []
        content = memoryview(self.buffer.numpy().data)
        with open_to_write(folder / file_name(self.rank), os.O_EXCL) as file:
            for start in range(0, len(content), BLOCK):
                write_all(file, content[start : start + BLOCK])
            checksums = [zlib.crc32(content[slot.start : slot.stop]) for slot in self.slots]
            os.fsync(file.fileno())
        return checksums

    def gather(self, checksums: Sequence[int]) -> list[tuple[list[int], int]]:
        """Return, in the first process, the checksums and the number of updates of all. All processes call this."""
        gathered: list[Any] | None = [None] * dist.get_world_size() if self.rank == 0 else None
        dist.gather_object((checksums, self.updates), gathered)
        return gathered or []

    def complete(
        self, folder: Path, gathered: Sequence[tuple[list[int], int]], extra: Mapping[str, bytes] | None = None
    ) -> None:
        """Write the index, the small files, those of `extra` by name, and last the manifest. Raises OSError."""
        updates = max(updates for _, updates in gathered)
        complete(folder, self.index, self.plans, [checksums for checksums, _ in gathered], updates, extra, self.fp8)

    def _new_buffer(self, slots: Sequence[Slot]) -> Tensor:
        """Return a buffer with the frames of all chunks, and zeros between them."""
        size = slots[-1].stop if slots else 0
        buffer = torch.zeros(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        for slot in slots:
            end = slot.data_start + slot.frame.data_bytes
            for start, content in ((slot.start, slot.frame.header), (end, slot.frame.trailer)):
                buffer[start : start + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return buffer


def save(folder: Path, engine: Engine, extra: Mapping[str, bytes] | None = None) -> None:
    """Write a checkpoint, with the files of `extra`, into the existing, empty folder; every process calls this.

    Raises OSError in all processes where one of them cannot write.
    """
    writer = CheckpointWriter(engine)
    checksums: list[int] = []

    def write() -> None:
        writer.stage()
        checksums.extend(writer.write(folder))

    writer.prepare()
    failure = engine.first_failure(write)
    if failure is None:
        gathered = writer.gather(checksums)
        failure = engine.first_failure(lambda: writer.complete(folder, gathered, extra) if gathered else None)
    if failure is not None:
        raise OSError(failure)
