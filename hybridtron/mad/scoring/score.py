"""The score of an architecture under one preset, task by task, with what was left out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from hybridtron.mad.scoring.estimate import Estimate, means
from hybridtron.mad.scoring.selection import BySetting
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.reporting.shown import Shown


@dataclass(frozen=True)
class TaskScore:
    """`best` has the chosen row of every setting and seed; `of_protocol` of the preset's `wanted` are among them."""

    accuracy: dict[str, Estimate]
    best: BySetting
    of_protocol: int
    wanted: int

    @property
    def complete(self) -> bool:
        """Return whether the score is over all settings of the protocol and no others."""
        return len(self.best) == self.of_protocol == self.wanted

    def selecting(self, kind: str) -> float:
        """Return the mean accuracy (micro or macro) of the chosen rows on the split that chose them."""
        return fmean(row[f"select_{kind}"] for by_seed in self.best.values() for row in by_seed.values())

    def coverage(self) -> str:
        """Describe which settings the mean is over where they are not the protocol's, such as `2 of 11`."""
        if self.complete:
            return ""
        others = len(self.best) - self.of_protocol
        words = [f"{self.of_protocol} of {self.wanted}"] if self.of_protocol else []
        return " + ".join([*words, *([f"{others} other"] if others else [])])


@dataclass(frozen=True)
class Score(Shown):
    """The score of one architecture under one preset. `overall` is a mean over the tasks that were run.

    `changes` lists what differs from the preset of this name, `others` has complete settings that do not count.
    """

    identity: str  # the fingerprint of what was trained
    protocol: str  # the fingerprint of how
    architecture: str
    pattern: str
    preset: str
    headline: str  # the accuracy that selects: micro or macro
    selected_on: str
    parameters: int
    state_size: int | None  # None where it is not known, as of a module
    seeds: tuple[int, ...]
    tasks: dict[str, TaskScore]
    overall: dict[str, Estimate]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]
    changes: str = ""
    others: dict[str, BySetting] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Return whether all six tasks have all settings of the preset's protocol."""
        return len(self.tasks) == len(TASKS) and all(task.complete for task in self.tasks.values())

    @property
    def num_settings(self) -> int:
        return sum(len(task.best) for task in self.tasks.values())

    @property
    def outside_protocol(self) -> dict[str, BySetting]:
        """Return the tasks that are scored on settings that the preset does not have."""
        return {name: task.best for name, task in self.tasks.items() if not task.of_protocol}

    def settings(self) -> dict[str, set[str]]:
        """Return the settings that count, as JSON, by task."""
        return {name: set(task.best) for name, task in self.tasks.items()}

    def as_json(self) -> dict[str, Any]:
        def numbers(estimates: dict[str, Estimate]) -> dict[str, Any]:
            return {kind: vars(estimate) for kind, estimate in estimates.items()}

        return {
            "architecture": self.architecture,
            "pattern": self.pattern,
            "preset": self.preset,
            "protocol": self.protocol,
            "changed_from_preset": self.changes,
            "complete": self.complete,
            "selected_by": f"{self.headline} on {self.selected_on}",
            "parameters": self.parameters,
            "state_size": self.state_size,
            "seeds": list(self.seeds),
            "overall": numbers(self.overall),
            "tasks": {
                name: {
                    **numbers(task.accuracy), "settings": len(task.best), "of_protocol": task.of_protocol,
                    "protocol": task.wanted,
                }
                for name, task in self.tasks.items()
            },
            "other_settings": {
                name: {
                    setting_text(name, json.loads(text)): numbers(means({text: best})) for text, best in some.items()
                }
                for name, some in self.others.items()
            },
            "left_out": list(self.left_out),
            "notes": list(self.notes),
        }  # fmt: skip
