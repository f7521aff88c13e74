"""Sentences on how the scores were obtained, and the cells of tables."""

from __future__ import annotations

import json
from collections.abc import Sequence

from hybridtron.mad.report.labels import labels, preset_words
from hybridtron.mad.scoring.aggregate import alike, by_procedure, differ
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.scoring.selection import BySetting
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.mad.training.presets import PRESETS
from hybridtron.reporting.numbers import NONE, plural


def conditions(made: Sequence[Score]) -> list[str]:
    """Return how the numbers were obtained and which of them compare."""
    groups = by_procedure(made)
    lines = [group_number(number, groups) + _procedure(group) for number, group in enumerate(groups, start=1)]
    if len(groups) > 1:
        lines.append(f"trained in {len(groups)} ways: numbers compare within one of them alone")
    if not all(score.complete for score in made):
        lines.append("* over fewer than six tasks, or not over the settings that the preset has: no MAD score")
    if any(differ(group) and not alike(group) for group in groups):
        lines.append("no setting is common to all: their means do not compare")
    for group in groups:
        for name, score in zip(labels(group), group, strict=True):
            for reason, some in (
                ("scored on what is no setting of", _not_of_protocol(score)),
                ("in no mean, since no settings of", score.others),
            ):
                words = [f"{task} {setting_text(task, json.loads(s))}" for task, best in some.items() for s in best]
                if words:
                    lines.append(f"{name}: {reason} {score.preset}: {'; '.join(words)}")
    return lines


def group_number(number: int, groups: Sequence[Sequence[Score]]) -> str:
    """Return the number before the headings of one of several groups."""
    return f"{number}. " if len(groups) > 1 else ""


def _procedure(group: Sequence[Score]) -> str:
    """Return how the scores of a group were trained and selected."""
    first = group[0]
    seeds = sorted({task.accuracy[first.headline].seeds for score in group for task in score.tasks.values()})
    words = f"{preset_words(first)} ({first.changes})" if first.changes else first.preset
    words += f": test accuracy in % ({first.headline}) of the cell that is best on the {first.selected_on} split"
    if first.selected_on == "test":
        words += ", the one that is reported, as mad-lab does it: too good"
    if first.preset in PRESETS and PRESETS[first.preset].settings == "baseline":
        words += "; the preset's settings are the baseline of each task alone"
    if max(seeds) == 1:
        return f"{words}; one seed, so no interval"
    return f"{words}; {' or '.join(map(str, seeds))} seeds, ± is a 95 % interval over seeds"


def _not_of_protocol(score: Score) -> dict[str, BySetting]:
    """Return the tasks that are scored on settings that the preset does not have."""
    return {name: task.best for name, task in score.tasks.items() if not task.of_protocol}


def common_words(alike: Sequence[Score]) -> str:
    """Return the heading of a table over the settings that all scores have."""
    return f"{settings_words(alike[0])} that all have"


def settings_words(score: Score) -> str:
    """Return on how many settings a score was measured."""
    return f"on {plural(sum(len(task.best) for task in score.tasks.values()), 'setting')}"


def tasks_words(score: Score) -> str:
    """Return the names of the tasks of a score."""
    return "the six tasks" if len(score.tasks) == len(TASKS) else ", ".join(score.tasks)


def cell(score: Score, task: str, kind: str | None = None) -> str:
    """Return the accuracy on a task, and below it on how many settings where these are not all."""
    if task not in score.tasks:
        return NONE
    found = score.tasks[task]
    return "\n".join(filter(None, (str(found.accuracy[kind or score.headline]), found.coverage())))


def mean(score: Score, kind: str) -> str:
    """Return the mean over the tasks, with a star where it is no MAD score."""
    return str(score.overall[kind]) + ("" if score.complete else "*")
