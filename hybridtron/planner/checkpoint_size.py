"""Bytes and files of a checkpoint, from the declarations of the tensors and the layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from hybridtron.distributed.checkpoint import manifest
from hybridtron.errors import UserError
from hybridtron.planner.share import Replicas, first_shards, optimizer_bytes, value_bytes
from hybridtron.tensors import TensorSpec
from hybridtron.training.config import RunConfig

# The index, what all processes share, the formats, checksums, and where the run stands.
SMALL_FILES = (".metadata", "common.pt", manifest.FORMATS, manifest.NAME, "train_state.json")


@dataclass(frozen=True)
class CheckpointSize:
    """Bytes of tensors in a checkpoint. Every element of a tensor is stored once, in the file of one process.

    Beside them a file has about 1.6 KiB for each stored piece of a tensor.
    """

    weights_bytes: int
    optimizer_bytes: int  # moments, with bf16 parameters their fp32 values, the average of weights
    total_bytes: int
    files: int  # of tensors, one of each process
    small_files: int
    largest_bytes_per_process: int
    mean_bytes_per_process: int
    disk_bytes_per_s: float | None  # of all processes together
    seconds: float | None


def checkpoint_size(
    config: RunConfig,
    specs: dict[str, TensorSpec],
    stages: Sequence[dict[str, TensorSpec]],
    replicas: Replicas,
    gpus: int,
    disk_gb_per_s: float | None,
) -> CheckpointSize:
    """Count a checkpoint of a model whose pipeline ranks hold `stages`, on so many processes.

    Raises UserError for a rate that is no positive number.
    """
    if disk_gb_per_s is not None and not 0 < disk_gb_per_s < float("inf"):
        raise UserError(f"disk_gb_per_s = {disk_gb_per_s}: expected a positive number")
    weights, optimizer = (sum(spec.numel * size(config, spec) for spec in specs.values()) for size in SIZES)
    rate = None if disk_gb_per_s is None else disk_gb_per_s * 1e9
    return CheckpointSize(
        weights_bytes=weights,
        optimizer_bytes=optimizer,
        total_bytes=weights + optimizer,
        files=gpus,
        small_files=len(SMALL_FILES),
        largest_bytes_per_process=max(_of_first(config, stage, rank, replicas) for rank, stage in enumerate(stages)),
        mean_bytes_per_process=round((weights + optimizer) / gpus),
        disk_bytes_per_s=rate,
        seconds=None if rate is None else (weights + optimizer) / rate,
    )


SIZES = (value_bytes, optimizer_bytes)


def _of_first(config: RunConfig, stage: dict[str, TensorSpec], rank: int, replicas: Replicas) -> int:
    """Count what the first process of a pipeline stage writes. It writes the most of the stage: beside its pieces also
    tensors that tensor parallelism leaves whole. Its data-parallel replicas share all that evenly."""
    written = 0.0
    for name, spec in stage.items():
        if config.model.last_stage_embeds and name == "embedding.weight" and rank > 0:
            continue  # the first stage writes it
        elements = math.prod(spec.local_shape(first_shards(config)))
        written += elements * sum(size(config, spec) for size in SIZES) / replicas.of(spec)
    return math.ceil(written)
