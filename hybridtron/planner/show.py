"""A plan as a table for people."""

from __future__ import annotations

from rich.console import Console

from hybridtron.planner.plan import Plan
from hybridtron.reporting.numbers import byte_size
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Table


@show.register(Plan)
def show_plan(plan: Plan, console: Console) -> None:
    """Print the plan: layout, a row per stage, and what the processes send per step."""
    used = ", ".join(
        key if value is True else f"{key} {value}"
        for key, value in plan.layout.items()
        if value is True or value not in (1, False, "none")
    )
    console.print(f"{plan.name} on {plan.gpus} processes: {used or 'one copy of the model'}")
    console.print(
        f"{plan.parameters:,} parameters, {plan.micro_batches} micro-batches per step and process; busiest "
        f"process {plan.imbalance:.1%} above the mean, pipeline bubble {plan.bubble:.1%}"
    )
    titles = ["FLOPs", "parameters", "weights", "gradients", "optimizer"]
    if plan.sent_bytes_per_step is not None:
        titles += ["activations", "sent per step"]
    rows = []
    for stage in plan.stages:
        sizes = [stage.parameter_bytes, stage.gradient_bytes, stage.optimizer_bytes]
        if stage.activation_bytes is not None and stage.sent_bytes_per_step is not None:
            sizes += [stage.activation_bytes, sum(stage.sent_bytes_per_step.values())]
        layers = ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in stage.layers)
        share = [f"{stage.flops_share:.1%}", f"{stage.parameters:,}"]
        rows.append([stage.pipeline_rank, layers, *share, *map(byte_size, sizes)])
    console.file.write(Table.from_rows(["stage", "layers", *titles], rows, right=titles).to_terminal(console))
    console.print("columns from parameters on are those of one process of the stage")
    if plan.sent_bytes_per_step is None:
        console.print("--dry-run builds every stage without values and counts activations and what is sent")
        return
    console.print("sent per step by all processes (ring algorithms):")
    for kind, size in sorted(plan.sent_bytes_per_step.items(), key=lambda entry: -entry[1]):
        console.print(f"  {kind:28} {byte_size(size):>10}")
    total = f"{plan.parameters_over_processes:,}"
    console.print(f"dry run: shapes are as declared; the processes' pieces add up to the model's {total}")
