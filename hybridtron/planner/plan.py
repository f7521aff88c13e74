"""What a layout makes of a run: stages, their cost and memory, and in a dry run what is sent between processes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from hybridtron.errors import UserError
from hybridtron.model.stage import Stage, cut, imbalance, stage_costs, stage_tensors
from hybridtron.model.tensors import model_tensors
from hybridtron.planner.dry_run import Device, StageRun, run_stage
from hybridtron.planner.memory import Capacity, Fit, StageMemory
from hybridtron.reporting.shown import Shown
from hybridtron.tensors import Shard, Shards, TensorSpec
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.memory import BYTES
from hybridtron.training.validation.resolve import data_parallel_size

GRADIENT_BYTES = 4
OPTIMIZER_BYTES = {"fp32": 8, "bf16": 12}  # two moments, and with bf16 the fp32 copy


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
    hold. `bubble` is the share of a step in which a process waits for the pipeline."""

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
    stages: list[StagePlan]
    sent_bytes_per_step: dict[str, int] | None  # of all processes together

    def as_json(self) -> dict[str, Any]:
        """Convert to the object that `--json` prints."""
        return asdict(self)


def plan(config: RunConfig, gpus: int, dry_run: bool, capacity: Capacity | None = None) -> Plan:
    """Plan a resolved config on so many processes; with `dry_run` build and run every distinct stage without values.

    Raises UserError for an impossible layout, or where the parts do not add up to the model.
    """
    capacity = capacity or Capacity.of()
    copies = data_parallel_size(config, gpus, size_name="gpus")
    model, parallel, train = config.model, config.parallel, config.train
    micro_batches = train.global_batch_size // (train.micro_batch_size * copies)
    stages = cut(model, parallel.num_stages, config.data.seq_len)
    costs = stage_costs(model, stages, config.data.seq_len)
    specs = model_tensors(model)
    plans, held = [], Counter[str]()
    runs: dict[tuple[Any, ...], StageRun] = {}
    for rank in range(parallel.pipeline):
        own = stages[rank :: parallel.pipeline]
        tensors = {name: spec for stage in own for name, spec in stage_tensors(model, specs, stage).items()}
        run = None
        if dry_run:
            kind = tuple((model.layer_names[s.start : s.stop], s.is_first, s.is_last) for s in own)
            if kind not in runs:
                runs[kind] = run_stage(config, gpus, rank, capacity.device)
            run = runs[kind]
        counts = {name: math.prod(spec.local_shape(_one_shard(config))) for name, spec in tensors.items()}
        if run and sum(run.parameters.values()) != sum(counts.values()):
            raise UserError(
                f"dry run: a process of stage {rank} holds {sum(run.parameters.values())} parameters; expected "
                f"{sum(counts.values())}"
            )
        copied = {"embedding.weight"} if model.tie_embeddings and rank > 0 else set()
        for name, count in counts.items():
            held[name] += count * _num_shards(specs[name], config) if name not in copied else 0
        share = sum(costs[stage.index] for stage in own) / max(1, sum(costs))
        plans.append(_stage(config, own, share, tensors, counts, run, copies, micro_batches, capacity))
    total = sum(spec.numel for spec in specs.values())
    if sum(held.values()) != total:
        raise UserError(f"the processes hold {sum(held.values())} parameters in all; expected the model's {total}")
    sent: Counter[str] | None = None
    if dry_run:
        sent = Counter()
        for stage in plans:
            for name, size in (stage.sent_bytes_per_step or {}).items():
                sent[name] += size * (gpus // parallel.pipeline)
    waiting = (parallel.pipeline - 1) / parallel.virtual_pipeline
    return Plan(
        name=config.name,
        gpus=gpus,
        layout={**parallel.model_dump(), "data": copies},
        micro_batches=micro_batches,
        imbalance=imbalance(costs, parallel.pipeline),
        bubble=waiting / (micro_batches + waiting),
        parameters=total,
        parameters_over_processes=sum(held.values()),
        device=capacity.device,
        fit=Fit.of(capacity, [stage.memory for stage in plans]),
        stages=plans,
        sent_bytes_per_step=None if sent is None else dict(sent),
    )


def _one_shard(config: RunConfig) -> Shards:
    """Return the shards that the first process holds."""
    parallel = config.parallel
    return Shards(Shard(0, parallel.tensor), Shard(0, parallel.expert), Shard(0, parallel.expert_tensor))


def _num_shards(spec: TensorSpec, config: RunConfig) -> int:
    """Count the distinct shards of a parameter."""
    return math.prod(shard.size for _, shard in spec.cuts(_one_shard(config)))


def _stage(
    config: RunConfig,
    own: list[Stage],
    share: float,
    tensors: dict[str, TensorSpec],
    counts: dict[str, int],
    run: StageRun | None,
    copies: int,
    micro_batches: int,
    capacity: Capacity,
) -> StagePlan:
    parallel, number = config.parallel, config.precision.format
    replicas = copies * parallel.context
    experts = replicas * parallel.tensor // (parallel.expert * parallel.expert_tensor)
    rank = own[0].index
    optimizer = sum(
        count // (1 if not parallel.distributed_optimizer else experts if tensors[name].experts else replicas)
        for name, count in counts.items()
        if tensors[name].trained
    )
    memory = StageMemory.of(
        weights=sum(count * (BYTES[number] if tensors[name].trained else 4) for name, count in counts.items()),
        gradients=GRADIENT_BYTES * sum(count for name, count in counts.items() if tensors[name].trained),
        optimizer=OPTIMIZER_BYTES[number] * optimizer,
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
        sent_bytes_per_step=None
        if run is None
        else _sent(config, own, tensors, counts, run, (replicas, experts), micro_batches),
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
    replicas: tuple[int, int],
    micro_batches: int,
) -> dict[str, int]:
    """Count the bytes that one process sends in a step, by group and kind; scalars are left out."""
    parallel, model = config.parallel, config.model
    width = BYTES[config.precision.format]
    sent = Counter(
        {f"{group} {kind}": size * micro_batches for (group, kind), size in run.sent_per_micro_batch.items()}
    )
    run_length = config.data.seq_len // parallel.context // (parallel.tensor if parallel.sequence else 1)
    message = run_length * config.train.micro_batch_size * model.hidden_size * width
    for stage in own:
        sent["pipeline send"] += message * micro_batches * ((not stage.is_first) + (not stage.is_last))
    for name, count in counts.items():
        spec = tensors[name]
        if not spec.trained:
            continue
        size = replicas[1] if spec.experts else replicas[0]
        group = "expert data" if spec.experts else "data"
        ring = (size - 1) / size
        if parallel.distributed_optimizer:
            sent[f"{group} reduce_scatter"] += round(ring * GRADIENT_BYTES * count)
            sent[f"{group} all_gather"] += round(ring * width * count)
        else:
            sent[f"{group} all_reduce"] += round(2 * ring * GRADIENT_BYTES * count)
        if parallel.sequence and not spec.parts and not spec.experts:
            sent["tensor all_reduce"] += round(2 * (parallel.tensor - 1) / parallel.tensor * GRADIENT_BYTES * count)
        if model.tie_embeddings and name == "embedding.weight" and parallel.pipeline > 1:
            sent["embedding all_reduce"] += GRADIENT_BYTES * count
    return {kind: size for kind, size in sorted(sent.items()) if size}
