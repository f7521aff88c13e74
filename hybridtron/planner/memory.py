"""Memory of one process of a pipeline stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hybridtron.errors import UserError
from hybridtron.planner.dry_run import Device, Passes

GIB = 1 << 30
MEMORY_GIB = 80.0
# Beside tensors. GPU: CUDA context with PyTorch's kernels (about 0.5 GiB), workspaces of cuBLAS, buffers of NCCL for
# each process group (0.1 to 0.4 GiB), and an allocator that cannot use every gap. CPU: the programs and libraries.
OVERHEAD_GIB: dict[Device, float] = {"gpu": 2.0, "cpu": 0.5}


@dataclass(frozen=True)
class Capacity:
    """The memory that one process has, and what of it is taken by other things than tensors, in bytes."""

    device: Device
    memory: int
    overhead: int

    @classmethod
    def of(cls, device: Device = "gpu", memory_gib: float = MEMORY_GIB, overhead_gib: float | None = None) -> Capacity:
        """Check the values and convert them to bytes. Raises UserError."""
        if device not in OVERHEAD_GIB:
            raise UserError(f"device = {device!r}: expected one of {', '.join(OVERHEAD_GIB)}")
        overhead_gib = OVERHEAD_GIB[device] if overhead_gib is None else overhead_gib
        if not 0 < memory_gib < float("inf"):
            raise UserError(f"memory_gib = {memory_gib}: expected a positive number")
        if not 0 <= overhead_gib < float("inf"):
            raise UserError(f"overhead_gib = {overhead_gib}: expected a number of at least 0")
        return cls(device, round(memory_gib * GIB), round(overhead_gib * GIB))


@dataclass(frozen=True)
class StageMemory:
    """Bytes of one process of a stage at the peak of a step; None where a dry run would tell.

    `activations` are kept for the backward passes of all micro-batches in flight. `temporaries` live beside them at
    the peak, which is in the phase `peak`. `loss` (final norm, logits, loss and their gradients) and `layer` (what the
    backward pass of a layer adds, with what it recomputes) say what temporaries come from; they are no further memory.
    `pinned` is CPU memory: what `parallel.cpu_offload_layers` moves there of all micro-batches in flight.
    """

    weights: int
    gradients: int
    optimizer: int
    overhead: int
    micro_batches_in_flight: float
    activations: int | None = None
    temporaries: int | None = None
    kept_per_micro_batch: dict[str, int] | None = None  # by block, the embedding and the loss
    peak: str | None = None
    loss: int | None = None
    layer: int | None = None
    pinned: int | None = None

    @classmethod
    def of(
        cls, weights: int, gradients: int, optimizer: int, overhead: int, in_flight: float, passes: Passes | None
    ) -> StageMemory:
        """Gather what a process holds; `passes` are those of a dry run."""
        memory = cls(weights, gradients, optimizer, overhead, in_flight)
        if passes is None:
            return memory
        return replace(
            memory,
            activations=round(sum(passes.kept.values()) * in_flight),
            temporaries=passes.temporaries,
            kept_per_micro_batch=passes.kept,
            peak=passes.peak,
            loss=passes.loss,
            layer=passes.layer,
            pinned=round(passes.host * in_flight),
        )

    @property
    def total(self) -> int:
        """Add up the bytes at the peak, without what is None and without CPU memory of a GPU's process."""
        static = self.weights + self.gradients + self.optimizer + self.overhead
        return static + (self.activations or 0) + (self.temporaries or 0)


@dataclass(frozen=True)
class Fit:
    """The largest total of a process against its memory. `fits` is None where only a dry run could tell."""

    memory: int
    largest: int
    stage: int
    fits: bool | None

    @classmethod
    def of(cls, capacity: Capacity, stages: list[StageMemory]) -> Fit:
        """Compare the most loaded stage with the memory."""
        stage = max(range(len(stages)), key=lambda index: stages[index].total)
        largest, complete = stages[stage].total, stages[stage].activations is not None
        fits = largest <= capacity.memory
        return cls(capacity.memory, largest, stage, fits if complete or not fits else None)
