"""What a study measured: one row per cell and seed, and each level and cell beside the reference."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hybridtron.ablations.axes import Axis, Level
from hybridtron.ablations.cells import Cell, CellRun, Plan
from hybridtron.ablations.compare import TEST, Comparison, compare, corrected
from hybridtron.ablations.study import Status, Study
from hybridtron.files import json_text
from hybridtron.laws.data.columns import SYNONYMS
from hybridtron.reporting.shown import Shown
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.run_folder.folder import RunFolder

Row = dict[str, Any]


@dataclass(frozen=True)
class Ablation(Shown):
    """The state and the results of a study. `rows` are those of results.csv: finished runs with a held-out loss."""

    plan: Plan
    status: Status
    rows: list[Row]
    others: int  # folders of runs that belong to an earlier form of the study

    @property
    def failures(self) -> list[tuple[CellRun, str]]:
        """Return runs that failed, or ended without a finite held-out loss, and why."""
        measured = {row["run"] for row in self.rows}
        found = []
        for run in self.plan.runs:
            if run.name in self.status.failed:
                found.append((run, self.status.failed[run.name]))
            elif run.name in self.status.finished and run.name not in measured:
                found.append((run, "finished without a finite held-out loss"))
        return found

    @property
    def missing(self) -> int:
        """Count the runs that are neither finished nor failed."""
        return len(self.plan.runs) - len(self.status.finished) - len(self.status.failed)

    def losses(self, cell: Cell) -> dict[int, float]:
        """Return the held-out losses of a cell by seed."""
        return self._losses.get(cell.name, {})

    @cached_property
    def _losses(self) -> dict[str, dict[int, float]]:
        losses: dict[str, dict[int, float]] = {}
        for row in self.rows:
            losses.setdefault(row["cell"], {})[row["seed"]] = row["loss"]
        return losses

    @cached_property
    def cells(self) -> list[Comparison]:
        """Return every cell beside the reference, which is first."""
        reference = self.losses(self.plan.reference)
        compared = [
            compare(cell.name, self.losses(cell), None if cell is self.plan.reference else reference)
            for cell in self.plan.cells
        ]
        return corrected(compared)

    @cached_property
    def axes(self) -> dict[str, list[Comparison]]:
        """Return for each axis its levels beside the reference level, the other axes being equal.

        Within a seed, the losses of a level are averaged over the cells that have a partner at the reference level.
        """
        return {axis.name: corrected([self._level(axis, level) for level in axis.levels]) for axis in self.plan.axes}

    def _level(self, axis: Axis, level: Level) -> Comparison:
        cells = {self._others(cell, axis): cell for cell in self.compared_cells(axis, level)}
        if level == axis.reference:
            return compare(level.name, _means([self.losses(cell) for cell in cells.values()]), None)
        partners = {self._others(cell, axis): cell for cell in self.compared_cells(axis, axis.reference)}
        pairs = [(self.losses(cell), self.losses(partners[key])) for key, cell in cells.items() if key in partners]
        pairs = [pair for pair in pairs if pair[0].keys() & pair[1].keys()]
        return compare(level.name, _means([pair[0] for pair in pairs]), _means([pair[1] for pair in pairs]))

    def compared_cells(self, axis: Axis, level: Level) -> list[Cell]:
        """Return the cells of a level that have a partner at another level, the other axes being equal."""
        same: dict[tuple[str, ...], int] = {}
        for cell in self.plan.cells:
            same[self._others(cell, axis)] = same.get(self._others(cell, axis), 0) + 1
        return [c for c in self.plan.cells if c.combination[axis.name] == level and same[self._others(c, axis)] > 1]

    def _others(self, cell: Cell, axis: Axis) -> tuple[str, ...]:
        """Return the levels of the other axes."""
        return tuple(cell.combination[other.name].name for other in self.plan.axes if other.name != axis.name)

    @property
    def best(self) -> Comparison | None:
        """Return the cell of the lowest mean loss among those with all seeds."""
        whole = [cell for cell in self.cells if cell.loss is not None and cell.seeds == len(self.plan.config.seeds)]
        return min(whole, key=lambda cell: cell.loss or 0.0, default=None)

    def as_json(self) -> dict[str, Any]:
        """Return the state, the rows and the comparisons."""
        return {
            "name": self.plan.config.name,
            "folder": str(self.plan.config.study_folder),
            "runs": {
                "planned": len(self.plan.runs), "finished": len(self.status.finished),
                "failed": len(self.status.failed), "missing": self.missing, "of_earlier_forms": self.others,
            },
            "failures": {run.name: cause for run, cause in self.failures},
            "reference": self.plan.reference.name,
            "test": TEST,
            "axes": {name: [level.as_json() for level in levels] for name, levels in self.axes.items()},
            "cells": [cell.as_json() for cell in self.cells],
            "rows": self.rows,
        }  # fmt: skip


def _means(losses: Sequence[Mapping[int, float]]) -> dict[int, float]:
    """Return the mean over cells for each seed that all of them have."""
    if not losses:
        return {}
    seeds = sorted(set.intersection(*(set(some) for some in losses)))
    return {seed: float(np.mean([some[seed] for some in losses])) for seed in seeds}


def read_results(study: Study) -> Ablation:
    """Read the state and the results of a study from its folder."""
    plan, status = study.plan, study.status()
    rows = []
    for run in plan.runs:
        summary = status.finished.get(run.name, {})
        loss = summary.get("valid_loss")
        if isinstance(loss, int | float) and math.isfinite(loss):
            rows.append(_row(plan, run, summary))
    return Ablation(plan, status, rows, study.others())


def to_csv(rows: Sequence[Row]) -> str:
    """Return rows as comma-separated text with a header; nothing for no rows."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return text.getvalue()


def _row(plan: Plan, run: CellRun, summary: Mapping[str, Any]) -> Row:
    """Return the results of a finished run, with the columns that laws know (docs/laws.md)."""
    cell, config, numbers = run.cell, run.config, run.cell.numbers
    seconds, devices = _seconds(run), _devices(run)
    row: Row = {"run": run.name, "cell": cell.name}
    for axis in plan.axes:
        level = cell.combination[axis.name]
        row[axis.name] = level.name if level.value is None else level.value
    for axis in plan.axes:
        drawn = dict(cell.combination[axis.name].drawn)
        keys = dict.fromkeys(key for level in axis.levels for key, _ in level.drawn)
        row |= {f"{axis.name}.{key}": drawn.get(key, "") for key in keys}
    if not {"arch", *SYNONYMS["arch"]} & row.keys():
        types = (config.model.blocks[name].type for name in config.model.layer_names)
        row["arch"] = "+".join(dict.fromkeys(types))
    hours = None if seconds is None else seconds * devices / 3600
    price = plan.config.price_per_device_hour
    return row | {
        "seed": run.seed,
        "loss": summary["valid_loss"],
        "bits_per_byte": summary.get("valid_bits_per_byte"),
        "train_loss": summary.get("loss"),
        "n_params": int(numbers["parameters"]),
        "n_params_non_embedding": int(numbers["non_embedding"]),
        "tokens": summary["tokens"],
        "flops": numbers["flops_per_token"] * summary["tokens"],
        "total_state": int(numbers["state"]),
        "steps": summary["step"],
        "learning_rate": config.optimizer.lr,
        "batch_tokens": config.tokens_per_step,
        "seconds": seconds,
        "device_hours": hours,
        "cost": None if hours is None or price is None else hours * price,
    }


def _seconds(run: CellRun) -> float | None:
    """Return how long the steps of a run took, without evaluations and saves; None where nothing was logged."""
    seconds, tokens = 0.0, 0
    for row in read_metrics(RunFolder(run.config.run_folder).metrics_file):
        rate, now = row.get("tokens_per_s"), row.get("tokens", 0)
        if isinstance(rate, int | float) and rate > 0:
            seconds, tokens = seconds + (now - tokens) / rate, now
    return seconds or None


def _devices(run: CellRun) -> int:
    """Return the number of processes that trained a run."""
    layout = RunFolder(run.config.run_folder).read_environment().get("layout", {})
    found = layout.get("world_size") if isinstance(layout, dict) else None
    return found if isinstance(found, int) and found > 0 else 1


def dump_json(ablation: Ablation) -> str:
    """Return the results as JSON."""
    return json_text(ablation.as_json()) + "\n"
