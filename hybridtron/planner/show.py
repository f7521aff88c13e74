"""A plan as a table for people."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from hybridtron.planner.plan import Plan

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def show(name: str, plan: Plan) -> None:
    """Print it."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160
    used = ", ".join(
        key if value is True else f"{key} {value}"
        for key, value in plan.layout.items()
        if value is True or value not in (1, False, "none")
    )
    console.print(f"{name} on {plan.gpus} processes: {used or 'one copy of the model'}")
    console.print(
        f"{plan.parameters:,} parameters, {plan.micro_batches} micro-batches per step and process; busiest "
        f"process {plan.imbalance:.1%} above the mean, pipeline bubble {plan.bubble:.1%}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("stage")
    table.add_column("layers")
    titles = ["FLOPs", "parameters", "weights", "gradients", "optimizer"]
    dry = plan.sent_bytes_per_step is not None
    for title in titles + ["activations", "sent per step"] * dry:
        table.add_column(title, justify="right")
    for stage in plan.stages:
        sizes = [stage.parameter_bytes, stage.gradient_bytes, stage.optimizer_bytes]
        if stage.activation_bytes is not None and stage.sent_bytes_per_step is not None:
            sizes += [stage.activation_bytes, sum(stage.sent_bytes_per_step.values())]
        table.add_row(
            str(stage.pipeline_rank),
            ", ".join(f"{first}-{last}" if last > first else str(first) for first, last in stage.layers),
            f"{stage.flops_share:.1%}",
            f"{stage.parameters:,}",
            *(_size(size) for size in sizes),
        )
    console.print(table)
    console.print("columns from parameters on are those of one process of the stage")
    if plan.sent_bytes_per_step is None:
        console.print("--dry-run builds every stage without values and counts activations and what is sent")
        return
    console.print("sent per step by all processes (ring algorithms):")
    for kind, size in sorted(plan.sent_bytes_per_step.items(), key=lambda entry: -entry[1]):
        console.print(f"  {kind:28} {_size(size):>10}")
    total = f"{plan.parameters_over_processes:,}"
    console.print(f"dry run: shapes are as declared; the processes' pieces add up to the model's {total}")


def _size(size: float) -> str:
    unit = 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_UNITS[unit]}" if unit == 0 else f"{size:.2f} {_UNITS[unit]}"
