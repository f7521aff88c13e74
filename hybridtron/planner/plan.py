"""What a layout makes of a run: stages, their cost and memory, and in a dry run what is sent between processes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridtron.accounting.describe import FORMAT_BYTES
from hybridtron.errors import UserError
from hybridtron.model.residual.stream import Packing
from hybridtron.model.stage import Stage, cut, imbalance, stage_costs, stage_tensors
from hybridtron.model.tensors import model_tensors
from hybridtron.planner import GPUS_PER_NODE
from hybridtron.planner.checkpoint_size import CheckpointSize, checkpoint_size
from hybridtron.planner.dry_run import Device, StageRun, run_stage
from hybridtron.planner.memory import Capacity, Fit, StageMemory
from hybridtron.planner.remarks import remarks_on
from hybridtron.planner.share import (
    GRADIENT_BYTES,
    Replicas,
    first_shards,
    num_shards,
    optimizer_bytes,
    uses_muon,
    value_bytes,
)
from hybridtron.planner.time_model import TimeModel, time_model
from hybridtron.reporting.shown import Shown
from hybridtron.tensors import TensorSpec
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import data_parallel_size


@dataclass(frozen=True)
class StagePlan:
    """One pipeline stage; parameters and bytes are those of each of its processes."""

    pipeline_rank: int
    layers: list[list[int]]  # runs [first, last] of layers, one per interleaved chunk
    flops_share: float  # of the model's forward FLOPs
    parameters: int
    parameter_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int | None  # of all micro-batches in flight; None without a dry run
    total_bytes: int  # at the peak, without activations and temporaries where there was no dry run
    memory: StageMemory
    sent_bytes_per_step: dict[str, int] | None  # "group collective" -> bytes; None without a dry run


@dataclass(frozen=True)
class Plan(Shown):
    """`parameters` counts the model's once; `parameters_over_processes` adds up the distinct shards that the processes
    hold. `bubble` is the share of a step in which a process waits for the pipeline. `pinned_bytes_per_node` is the
    pinned CPU memory of the processes of the node that has most of it."""

    name: str
    gpus: int
    layout: dict[str, Any]
    micro_batches: int
    imbalance: float
    bubble: float
    parameters: int
    parameters_over_processes: int
    device: Device
    fit: Fit
    gpus_per_node: int
    pinned_bytes_per_node: int | None  # None without a dry run
    stages: list[StagePlan]
    sent_bytes_per_step: dict[str, int] | None  # of all processes together
    checkpoint: CheckpointSize
    time: TimeModel | None  # None without a table of measured layers
    remarks: list[str]  # what a dry run counts as if it were otherwise

    def as_json(self) -> dict[str, Any]:
        """Convert to the object that `--json` prints."""
        return asdict(self)


def plan(
    config: RunConfig,
    gpus: int,
    dry_run: bool,
    capacity: Capacity | None = None,
    disk_gb_per_s: float | None = None,
    table: Path | None = None,
    gpus_per_node: int = GPUS_PER_NODE,
) -> Plan:
    """Plan a resolved config on so many processes; with `dry_run` build and run every distinct stage without values.
    `table` has measured times of layers, by which processes are compared in place of FLOPs.

    Raises UserError for an impossible layout, or where the parts do not add up to the model.
    """
    capacity = capacity or Capacity.of()
    copies = data_parallel_size(config, gpus, size_name="gpus")
    model, parallel, train = config.model, config.parallel, config.train
    replicas = Replicas.of_layout(config, copies)
    micro_batches = train.global_batch_size // (train.micro_batch_size * copies)
    stages = cut(model, parallel.num_stages, config.data.seq_len)
    costs = stage_costs(model, stages, config.data.seq_len)
    specs = model_tensors(model)
    own = [stages[rank :: parallel.pipeline] for rank in range(parallel.pipeline)]
    held = [{name: spec for stage in some for name, spec in stage_tensors(model, specs, stage).items()} for some in own]
    total = _count_whole(config, specs, held)
    runs = _dry_runs(config, gpus, capacity.device, own, held) if dry_run else [None] * parallel.pipeline
    plans = [
        _stage(config, some, sum(costs[stage.index] for stage in some) / max(1, sum(costs)), tensors, run, replicas,
               micro_batches, capacity)
        for some, tensors, run in zip(own, held, runs, strict=True)
    ]  # fmt: skip
    time = time_model(config, table, stages, micro_batches) if table else None
    waiting = (parallel.pipeline - 1) / parallel.virtual_pipeline
    return Plan(
        name=config.name,
        gpus=gpus,
        layout={**parallel.model_dump(), "data": copies},
        micro_batches=micro_batches,
        imbalance=imbalance(time.stages_ms if time else costs, parallel.pipeline),
        bubble=waiting / (micro_batches + waiting),
        parameters=total,
        parameters_over_processes=total,
        device=capacity.device,
        fit=Fit.of(capacity, [stage.memory for stage in plans]),
        gpus_per_node=gpus_per_node,
        pinned_bytes_per_node=_pinned_on_a_node(plans, gpus, gpus_per_node) if dry_run else None,
        stages=plans,
        sent_bytes_per_step=_sent_by_all(plans, gpus // parallel.pipeline) if dry_run else None,
        checkpoint=checkpoint_size(config, specs, held, replicas, gpus, disk_gb_per_s),
        time=time,
        remarks=remarks_on(config, capacity.device) if dry_run else [],
    )


def _count_whole(config: RunConfig, specs: dict[str, TensorSpec], held: list[dict[str, TensorSpec]]) -> int:
    """Return the model's parameters. Raises UserError where the processes' pieces do not add up to them."""
    total = sum(spec.numel for spec in specs.values())
    pieces = 0
    for rank, tensors in enumerate(held):
        copied = {"embedding.weight"} if config.model.last_stage_embeds and rank > 0 else set()
        for name, count in _local_counts(config, tensors).items():
            pieces += count * num_shards(specs[name], config) if name not in copied else 0
    if pieces != total:
        raise UserError(f"the processes hold {pieces} parameters in all; expected the model's {total}")
    return total


def _local_counts(config: RunConfig, tensors: dict[str, TensorSpec]) -> dict[str, int]:
    """Count the elements that the first process of a stage holds of each tensor."""
    return {name: math.prod(spec.local_shape(first_shards(config))) for name, spec in tensors.items()}


def _dry_runs(
    config: RunConfig, gpus: int, device: Device, own: list[list[Stage]], held: list[dict[str, TensorSpec]]
) -> list[StageRun | None]:
    """Run the first process of each pipeline rank, equal ones once. Raises UserError for parameters not as declared."""
    runs: dict[tuple[Any, ...], StageRun] = {}
    names, of_rank = config.model.layer_names, list[StageRun | None]()
    for rank, (stages, tensors) in enumerate(zip(own, held, strict=True)):
        kind = tuple((names[stage.start : stage.stop], stage.is_first, stage.is_last) for stage in stages)
        run = runs[kind] = runs.get(kind) or run_stage(config, gpus, rank, device)
        found, expected = sum(run.parameters.values()), sum(_local_counts(config, tensors).values())
        if found != expected:
            raise UserError(f"dry run: a process of stage {rank} holds {found} parameters; expected {expected}")
        of_rank.append(run)
    return of_rank


def _pinned_on_a_node(plans: list[StagePlan], gpus: int, gpus_per_node: int) -> int:
    """Return the largest pinned memory of a node's processes; those of a stage come one after another."""
    of_process = [stage.memory.pinned or 0 for stage in plans for _ in range(gpus // len(plans))]
    return max(sum(of_process[first : first + gpus_per_node]) for first in range(0, gpus, gpus_per_node))


def _sent_by_all(plans: list[StagePlan], processes: int) -> dict[str, int]:
    """Add up what the processes of all stages send in a step, of which each stage has so many."""
    sent: Counter[str] = Counter()
    for stage in plans:
        for name, size in (stage.sent_bytes_per_step or {}).items():
            sent[name] += size * processes
    return dict(sent)


def _stage(
    config: RunConfig,
    own: list[Stage],
    share: float,
    tensors: dict[str, TensorSpec],
    run: StageRun | None,
    replicas: Replicas,
    micro_batches: int,
    capacity: Capacity,
) -> StagePlan:
    parallel, counts = config.parallel, _local_counts(config, tensors)
    rank = own[0].index
    optimizer = sum(
        optimizer_bytes(config, tensors[name])
        * (count // (replicas.of(tensors[name]) if parallel.distributed_optimizer else 1))
        for name, count in counts.items()
    )
    memory = StageMemory.of(
        weights=sum(count * value_bytes(config, tensors[name]) for name, count in counts.items()),
        gradients=GRADIENT_BYTES * sum(count for name, count in counts.items() if tensors[name].trained),
        optimizer=optimizer,
        passes=None if run is None else run.passes,
        in_flight=_in_flight(config, rank, micro_batches),
        overhead=capacity.overhead,
    )
    return StagePlan(
        pipeline_rank=rank,
        layers=[[stage.start, stage.stop - 1] for stage in own],
        flops_share=share,
        parameters=sum(counts.values()),
        parameter_bytes=memory.weights,
        gradient_bytes=memory.gradients,
        optimizer_bytes=memory.optimizer,
        activation_bytes=memory.activations,
        total_bytes=memory.total,
        memory=memory,
        sent_bytes_per_step=None if run is None else _sent(config, own, tensors, counts, run, replicas, micro_batches),
    )


def _in_flight(config: RunConfig, rank: int, micro_batches: int) -> float:
    """Count the micro-batches whose activations the first process of a stage keeps at once, at most."""
    parallel = config.parallel
    if parallel.virtual_pipeline == 1:
        return min(micro_batches, parallel.pipeline - rank)
    chunk_passes = 2 * (parallel.pipeline - rank - 1) + (parallel.virtual_pipeline - 1) * parallel.pipeline + 1
    return min(micro_batches * parallel.virtual_pipeline, chunk_passes) / parallel.virtual_pipeline


def _sent(
    config: RunConfig,
    own: list[Stage],
    tensors: dict[str, TensorSpec],
    counts: dict[str, int],
    run: StageRun,
    replicas: Replicas,
    micro_batches: int,
) -> dict[str, int]:
    """Count the bytes that one process sends in a step, by group and kind; scalars are left out."""
    parallel, model = config.parallel, config.model
    width = FORMAT_BYTES[config.precision.parameter_format]
    sent = Counter(
        {f"{group} {kind}": size * micro_batches for (group, kind), size in run.sent_per_micro_batch.items()}
    )
    stages = cut(model, parallel.num_stages, config.data.seq_len)
    travelling = Packing(model, parallel.tensor, parallel.sequence).widest(stages)
    run_length = config.data.seq_len // parallel.context // (parallel.tensor if parallel.sequence else 1)
    message = run_length * config.train.micro_batch_size * travelling * width
    for stage in own:
        sent["pipeline send"] += message * micro_batches * ((not stage.is_first) + (not stage.is_last))
    for name, count in counts.items():
        spec = tensors[name]
        if not spec.trained:
            continue
        size = replicas.of(spec)
        group = "expert data" if spec.experts else "data"
        ring = (size - 1) / size
        if parallel.distributed_optimizer:
            sent[f"{group} reduce_scatter"] += round(ring * GRADIENT_BYTES * count)
            sent[f"{group} all_gather"] += round(ring * value_bytes(config, spec) * count)
        else:
            sent[f"{group} all_reduce"] += round(2 * ring * GRADIENT_BYTES * count)
        if spec.parts and uses_muon(config, spec):  # gathers the pieces of a matrix
            ways = parallel.expert_tensor if spec.experts else parallel.tensor
            sent[f"{'expert tensor' if spec.experts else 'tensor'} all_gather"] += (ways - 1) * width * count
        if parallel.sequence and not spec.parts and not spec.experts:
            sent["tensor all_reduce"] += round(2 * (parallel.tensor - 1) / parallel.tensor * GRADIENT_BYTES * count)
        if model.last_stage_embeds and name == "embedding.weight" and parallel.pipeline > 1:
            sent["embedding all_reduce"] += GRADIENT_BYTES * count
    return {kind: size for kind, size in sorted(sent.items()) if size}
