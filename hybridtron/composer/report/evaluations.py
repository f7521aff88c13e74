"""The evaluations of a search by pattern: proposing engine, seconds, accuracy by task, errors; and the workers."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from hybridtron.composer.report.outcome import Outcome
from hybridtron.composer.space.space import Pattern

UNKNOWN = "not recorded"  # the engine of proposals whose rows do not name it


@dataclass(frozen=True)
class Evaluations:
    """By pattern, over all seeds: engine, seconds, mean accuracy by task where there are tasks, and errors."""

    engines: Mapping[Pattern, str]
    seconds: Mapping[Pattern, float]
    tasks: Mapping[Pattern, Mapping[str, float]]
    errors: Mapping[Pattern, str]
    workers: int
    last: datetime | None  # when the last evaluation ended

    @property
    def engine_counts(self) -> dict[str, int]:
        """Return how many evaluated patterns each engine has proposed, most first."""
        return dict(Counter(self.engines[pattern] for pattern in self.seconds).most_common())

    @property
    def task_names(self) -> list[str]:
        """Return the names of the evaluator's tasks."""
        return list(dict.fromkeys(name for means in self.tasks.values() for name in means))


def read_evaluations(outcome: Outcome, folder: Path) -> Evaluations:
    """Read the evaluations from the outcome's result rows, and engines from the folder's evaluations.jsonl."""
    evaluated = {p for step in outcome.progress.steps for p in (*(o.pattern for o in step.finished), *step.failed)}
    rows: dict[Pattern, list[Mapping[str, Any]]] = defaultdict(list)
    for (pattern, seed), row in outcome.progress.results.items():
        if pattern in evaluated and seed in outcome.search.config.seeds:
            rows[pattern].append(row)
    everything = [row for some in rows.values() for row in some]
    times = [row["time"] for row in everything if "time" in row]
    errors = {pattern: dict.fromkeys(row["error"] for row in some if "error" in row) for pattern, some in rows.items()}
    return Evaluations(
        engines=_engines(outcome, folder),
        seconds={pattern: sum(row.get("seconds", 0.0) for row in some) for pattern, some in rows.items()},
        tasks={pattern: _mean_tasks(some) for pattern, some in rows.items()},
        errors={pattern: "; ".join(some) for pattern, some in errors.items()},
        workers=len({row["worker"] for row in everything if "worker" in row}),
        last=datetime.fromtimestamp(max(times), UTC) if times else None,
    )


def _mean_tasks(rows: list[Mapping[str, Any]]) -> dict[str, float]:
    found = [row["tasks"] for row in rows if row.get("tasks")]
    return {name: fmean(tasks[name] for tasks in found if name in tasks) for name in (found[0] if found else ())}


def _engines(outcome: Outcome, folder: Path) -> dict[Pattern, str]:
    """Return the first engine that proposed each pattern; the config's where no row names an engine."""
    whole = outcome.search.space
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    proposals = [row for row in map(json.loads, lines) if row["row"] == "propose"]
    named = any("engine" in row for row in proposals)
    unnamed = UNKNOWN if named else outcome.search.config.engine.type
    found: dict[Pattern, str] = {}
    for row in proposals:
        for text in row["patterns"]:
            found.setdefault(whole.indices(text.split()), row.get("engine", unnamed))
    return found
