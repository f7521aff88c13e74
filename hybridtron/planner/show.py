"""A plan as tables for people."""

from __future__ import annotations

from rich.console import Console

from hybridtron.distributed.config import ParallelConfig
from hybridtron.planner.checkpoint_size import CheckpointSize
from hybridtron.planner.memory import GIB, StageMemory
from hybridtron.planner.plan import Plan
from hybridtron.planner.time_model import TimeModel
from hybridtron.reporting.numbers import byte_size, duration, plural
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Table

NAMES = {"gpu": "GPU", "cpu": "CPU process"}


@show.register(Plan)
def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan: layout, a row per stage, memory, and what the processes send per step."""
    defaults = {**ParallelConfig().model_dump(), "data": 1}
    used = ", ".join(
        key if value is True else f"{key} {value}" for key, value in plan.layout.items() if value != defaults[key]
    )
    console.print(f"{plan.name} on {plural(plan.gpus, 'process', 'processes')}: {used or 'one copy of the model'}")
    console.print(
        f"{plan.parameters:,} parameters, {plan.micro_batches} micro-batches per step and process; busiest "
        f"process {plan.imbalance:.1%} above the mean, pipeline bubble {plan.bubble:.1%}"
    )
    _show_stages(plan, console)
    if plan.time:
        _show_time(plan.time, console)
    _show_memory(plan, console)
    _show_checkpoint(plan.checkpoint, console)
    if plan.sent_bytes_per_step is None:
        console.print("--dry-run builds every stage without values and counts activations and what is sent")
        return
    console.print("\nsent per step by all processes (ring algorithms):")
    for kind, size in sorted(plan.sent_bytes_per_step.items(), key=lambda entry: -entry[1]):
        console.print(f"  {kind:28} {byte_size(size):>10}")
    total = f"{plan.parameters_over_processes:,}"
    console.print(f"dry run: shapes are as declared; the processes' pieces add up to the model's {total}")


def _show_stages(plan: Plan, console: Console) -> None:
    """Print what each stage computes, holds and sends."""
    titles = [
        "FLOPs",
        *(["passes"] if plan.time else []),
        "parameters",
        *(["sent per step"] if plan.sent_bytes_per_step is not None else []),
    ]
    rows = []
    for stage in plan.stages:
        layers = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in stage.layers)
        passes = [f"{plan.time.stages_ms[stage.pipeline_rank]:.4g} ms"] if plan.time else []
        row = [stage.pipeline_rank, layers, f"{stage.flops_share:.1%}", *passes, f"{stage.parameters:,}"]
        if stage.sent_bytes_per_step is not None:
            row.append(byte_size(sum(stage.sent_bytes_per_step.values())))
        rows.append(row)
    console.file.write(Table.from_rows(["stage", "layers", *titles], rows, right=titles).to_terminal(console))
    console.print("columns from parameters on are those of one process of the stage")


def _show_time(time: TimeModel, console: Console) -> None:
    """Print what a step takes by the table of layers, better cuts, and what the table lacked."""
    console.print(
        f"\ntimes of {time.table}: {duration(time.step_seconds)} a step without communication and optimizer; passes "
        "are those of a micro-batch, forward and backward"
    )
    if time.pattern:
        console.print(f'  cuts that balance them better: model.pattern="{time.pattern}"', markup=False, soft_wrap=True)
    for remark in time.remarks:
        console.print(f"  {remark}", markup=False, soft_wrap=True)


def _show_memory(plan: Plan, console: Console) -> None:
    """Print the memory of a process of each stage, whether it fits, and what activations and temporaries are."""
    counted = plan.stages[0].memory.activations is not None
    titles = ["weights", "gradients", "optimizer", *(["activations", "temporaries"] if counted else []), "overhead"]
    rows = [
        [
            stage.pipeline_rank,
            *(byte_size(getattr(stage.memory, title)) for title in titles),
            byte_size(stage.total_bytes),
        ]
        for stage in plan.stages
    ]
    titles.append("total" if counted else "total so far")
    console.print(f"\nmemory of one {NAMES[plan.device]}:")
    console.file.write(Table.from_rows(["stage", *titles], rows, right=titles).to_terminal(console))
    fit, size = plan.fit, f"{plan.fit.largest / GIB:.1f}"
    where = f" (stage {fit.stage})" if len(plan.stages) > 1 else ""
    answer = {True: f"yes, {size}", False: f"no, {size if counted else f'at least {size}'}{where}"}
    unknown = f"not known without activations; {size} so far{where}"
    console.print(f"fits in {fit.memory / GIB:g} GiB: {unknown if fit.fits is None else answer[fit.fits]}")
    for stage in plan.stages:
        _explain(stage.pipeline_rank, stage.memory, console)
    for remark in plan.remarks:
        console.print(remark, soft_wrap=True)
    if plan.pinned_bytes_per_node:
        console.print(
            f"pinned CPU memory: {byte_size(plan.pinned_bytes_per_node)} on a node of "
            f"{plural(min(plan.gpus, plan.gpus_per_node), 'process', 'processes')}, the most of all nodes"
        )


def _show_checkpoint(checkpoint: CheckpointSize, console: Console) -> None:
    """Print the size of a checkpoint, what a process writes of it, and how long that takes."""
    console.print(
        f"\na checkpoint: {byte_size(checkpoint.total_bytes)} in {plural(checkpoint.files, 'file')}, one of each "
        f"process, and {checkpoint.small_files} small ones\n"
        f"  weights {byte_size(checkpoint.weights_bytes)}, optimizer {byte_size(checkpoint.optimizer_bytes)}\n"
        f"  a process writes {byte_size(checkpoint.mean_bytes_per_process)} on average, "
        f"about {byte_size(checkpoint.largest_bytes_per_process)} at most"
    )
    if checkpoint.seconds is not None and checkpoint.disk_bytes_per_s is not None:
        console.print(
            f"  {duration(checkpoint.seconds)} at {checkpoint.disk_bytes_per_s / 1e9:g} GB/s for all processes"
        )


def _explain(rank: int, memory: StageMemory, console: Console) -> None:
    """Print what the activations and temporaries of a stage consist of."""
    if memory.kept_per_micro_batch is None:
        return
    kept = sorted(memory.kept_per_micro_batch.items(), key=lambda entry: -entry[1])
    parts = ", ".join(f"{part} {byte_size(size)}" for part, size in kept)
    console.print(
        f"stage {rank}: {memory.micro_batches_in_flight:g} x {byte_size(sum(size for _, size in kept))} kept for the "
        f"backward passes of the micro-batches in flight: {parts}",
        soft_wrap=True,
    )
    if memory.pinned:
        console.print(
            f"  others wait in {byte_size(memory.pinned)} of pinned CPU memory, as PyTorch rounds it", soft_wrap=True
        )
    peaks = [f"a layer's backward pass takes up to {byte_size(memory.layer or 0)} more"]
    if memory.loss:
        peaks.append(f"logits and loss, with their gradients, up to {byte_size(memory.loss)}")
    console.print(f"  the peak is in the {memory.peak}; {'; '.join(peaks)}", soft_wrap=True)
