"""The tables of an ablation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hybridtron.ablations.compare import Comparison
from hybridtron.ablations.results import Ablation
from hybridtron.reporting.numbers import NONE, decimals, duration, short_number
from hybridtron.reporting.table import Column, Table, decimal_column, integer_column


def comparisons(rows: Sequence[Comparison], label: str) -> Table:
    """Return levels or cells with their loss, their difference from the reference, and the test."""
    places = max(3, min(decimals([row.loss for row in rows]), 6))
    columns = [
        Column(label, [row.name for row in rows]),
        decimal_column("loss", [row.loss for row in rows], places),
        Column("95 % interval", [_interval(row.interval, places) for row in rows]),
        integer_column("seeds", [row.seeds for row in rows]),
    ]
    if any(row.difference is not None for row in rows):
        columns += [
            Column("difference", [_signed(row.difference, places) for row in rows], right=True),
            Column("95 % interval ", [_interval(row.difference_interval, places) for row in rows]),
            Column("p (Holm)", [_p(row.p_holm) for row in rows], right=True, note="paired over seeds"),
        ]
    columns.append(Column("verdict", [row.verdict for row in rows]))
    return Table(columns)


def costs(ablation: Ablation) -> Table:
    """Return what each cell is and what its runs took, the reference first."""
    rows_of: dict[str, list[dict[str, Any]]] = {}
    for row in ablation.rows:
        rows_of.setdefault(row["cell"], []).append(row)
    cells = ablation.plan.cells
    adjusted = ablation.plan.config.equal.key if ablation.plan.config.equal else ""
    columns = [
        Column("cell", [cell.name for cell in cells]),
        *([Column(adjusted, [cell.adjusted for cell in cells], right=True)] if any(c.adjusted for c in cells) else []),
        Column("parameters", [cell.numbers["parameters"] for cell in cells], short_number, right=True),
        Column("tokens", [cell.numbers["tokens"] for cell in cells], short_number, right=True),
        Column("FLOPs", [cell.numbers["flops"] for cell in cells], short_number, right=True, note="of training"),
        Column("state", [cell.numbers["state"] for cell in cells], short_number, right=True, note="elements"),
        integer_column("steps", [cell.config.train.steps for cell in cells]),
        Column("time", [_total(rows_of.get(cell.name, []), "seconds") for cell in cells], duration, right=True),
        Column(
            "device-hours",
            [_total(rows_of.get(cell.name, []), "device_hours") for cell in cells],
            lambda hours: f"{hours:.3g}",
            right=True,
        ),
    ]
    if ablation.plan.config.price_per_device_hour is not None:
        paid = [_total(rows_of.get(cell.name, []), "cost") for cell in cells]
        columns.append(Column("cost", paid, lambda cost: f"{cost:.3g}", right=True))
    return Table(columns)


def failures(ablation: Ablation) -> Table:
    """Return the runs that failed, and why."""
    rows = [(run.cell.name, str(run.seed), cause, run.name) for run, cause in ablation.failures]
    return Table.from_rows(("cell", "seed", "cause", "folder in cells/"), rows, right=("seed",))


def plan(ablation: Ablation) -> Table:
    """Return the runs of a study with their size and state, before or while they are trained."""
    status = ablation.status
    states = [
        "finished" if run.name in status.finished
        else f"failed: {status.failed[run.name]}" if run.name in status.failed
        else "begun" if run.name in status.begun else "missing"
        for run in ablation.plan.runs
    ]  # fmt: skip
    cells = [run.cell for run in ablation.plan.runs]
    return Table(
        [
            Column("run", [run.name for run in ablation.plan.runs]),
            Column("parameters", [cell.numbers["parameters"] for cell in cells], short_number, right=True),
            Column("tokens", [cell.numbers["tokens"] for cell in cells], short_number, right=True),
            Column("FLOPs", [cell.numbers["flops"] for cell in cells], short_number, right=True),
            integer_column("steps", [cell.config.train.steps for cell in cells]),
            Column("batch", [cell.config.train.global_batch_size for cell in cells], right=True),
            Column("lr", [cell.config.optimizer.lr for cell in cells], lambda lr: f"{lr:.3g}", right=True),
            Column("state", states),
        ]
    )


def _total(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    known = [row[name] for row in rows if row[name] is not None]
    return sum(known) if known else None


def _interval(ends: tuple[float, float] | None, places: int) -> str:
    return NONE if ends is None else " to ".join(f"{end:.{places}f}".replace("-", "−") for end in ends)


def _signed(value: float | None, places: int) -> str:
    return NONE if value is None else f"{value:+.{places}f}".replace("-", "−")


def _p(value: float | None) -> str:
    return NONE if value is None else f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
