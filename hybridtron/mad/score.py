"""From rows to MAD scores.

For every setting and seed the cell with the best accuracy on the selecting split counts, with its accuracy on the test
split. A task's score is the mean over its settings, the score of an architecture the mean over the six tasks. Intervals
are Student's t at 95 % over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import stdtrit

from hybridtron.mad.results import Row
from hybridtron.mad.tasks import TASKS

KINDS = ("micro", "macro")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; no interval with one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{100 * self.mean:.1f}"
        return f"{100 * self.mean:.1f} ± {50 * (self.high - self.low):.1f}"


@dataclass(frozen=True)
class TaskScore:
    """`best` has the chosen row of every setting and seed."""

    accuracy: dict[str, Estimate]
    num_settings: int
    best: dict[str, dict[int, Row]]


@dataclass(frozen=True)
class Score:
    """Of one architecture under one preset. `overall` is a mean over the tasks that were run."""

    identity: str  # the fingerprint of what was trained
    architecture: str
    pattern: str
    preset: str
    headline: str  # the accuracy that selects: micro or macro
    selected_on: str
    parameters: int
    state_size: int
    seeds: tuple[int, ...]
    tasks: dict[str, TaskScore]
    overall: dict[str, Estimate]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        def numbers(estimates: dict[str, Estimate]) -> dict[str, Any]:
            return {kind: vars(estimate) for kind, estimate in estimates.items()}

        return {
            "architecture": self.architecture,
            "pattern": self.pattern,
            "preset": self.preset,
            "selected_by": f"{self.headline} on {self.selected_on}",
            "parameters": self.parameters,
            "state_size": self.state_size,
            "seeds": list(self.seeds),
            "overall": numbers(self.overall),
            "tasks": {
                name: {**numbers(task.accuracy), "settings": task.num_settings} for name, task in self.tasks.items()
            },
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value per seed, with its 95 % interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return Estimate(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def scores(rows: Sequence[Row]) -> list[Score]:
    """One score per architecture and preset, the best first. Settings without all cells and seeds are left out."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["fingerprint"], row["protocol"]), []).append(row)
    found = [score for score in map(_score, groups.values()) if score is not None]
    return sorted(found, key=lambda score: (-len(score.tasks), -score.overall[score.headline].mean, score.architecture))


def _score(rows: list[Row]) -> Score | None:
    first = rows[0]
    headline = first["accuracy"]
    seeds = tuple(sorted({row["seed"] for row in rows}))
    tasks: dict[str, TaskScore] = {}
    left_out = []
    for name in TASKS:
        best: dict[str, dict[int, Row]] = {}
        by_setting: dict[str, list[Row]] = {}
        for row in rows:
            if row["task"] == name:
                by_setting.setdefault(json.dumps(row["setting"], sort_keys=True), []).append(row)
        for setting, some in sorted(by_setting.items(), key=lambda item: _order(name, json.loads(item[0]))):
            cells = {seed: [row for row in some if row["seed"] == seed] for seed in seeds}
            if any(len(of_seed) < first["num_cells"] for of_seed in cells.values()):
                left_out.append(f"{name} {setting}: not all cells and seeds are there")
                continue
            best[setting] = {seed: max(of_seed, key=_selecting(headline)) for seed, of_seed in cells.items()}
        if best:
            means = {
                kind: [math.fsum(best[s][seed][f"test_{kind}"] for s in best) / len(best) for seed in seeds]
                for kind in KINDS
            }
            accuracy = {kind: estimate(values) for kind, values in means.items()}
            tasks[name] = TaskScore(accuracy, len(best), best)
    if not tasks:
        return None
    overall = {}
    for kind in KINDS:
        per_seed = []
        for seed in seeds:
            values = [
                math.fsum(rows[seed][f"test_{kind}"] for rows in task.best.values()) / len(task.best)
                for task in tasks.values()
            ]
            per_seed.append(math.fsum(values) / len(values))
        overall[kind] = estimate(per_seed)
    return Score(
        identity=first["fingerprint"],
        architecture=first["architecture"],
        pattern=first["pattern"],
        preset=first["preset"],
        headline=headline,
        selected_on=first["selected_on"],
        parameters=first["parameters"],
        state_size=first["state_size"],
        seeds=seeds,
        tasks=tasks,
        overall=overall,
        left_out=tuple(left_out),
        notes=tuple(first["notes"]),
    )


def _selecting(kind: str) -> Any:
    """Ties go to the smaller learning rate and decay, whatever the order of the rows."""
    return lambda row: (row[f"select_{kind}"], -row["lr"], -row["weight_decay"])


def _order(name: str, setting: dict[str, Any]) -> tuple[Any, ...]:
    """The order of the protocol's table: the baseline, then key by key from easy to hard."""
    baseline = TASKS[name].baseline
    changed = [(list(baseline).index(key), value) for key, value in setting.items() if value != baseline[key]]
    return tuple((index, -value if index == 2 else value) for index, value in changed)
