"""From rows to MAD scores.

For every setting and seed the cell with the best accuracy on the selecting split counts, with its accuracy on the test
split. A task's score is the mean over its settings, the score of an architecture the mean over the six tasks. Intervals
are Student's t at 95 % over seeds. What is left out is listed: see `selection`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from hybridtron.mad.scoring.estimate import KINDS, Estimate, estimate, mean_by_seed, means
from hybridtron.mad.scoring.results import Key, Row, key
from hybridtron.mad.scoring.score import Score, TaskScore
from hybridtron.mad.scoring.selection import BySetting, chosen_cells, of_whole_seeds
from hybridtron.mad.training.presets import PRESETS, preset_changes
from hybridtron.mad.training.suite import chosen_settings


def scores(rows: Sequence[Row], protocol_only: bool = False) -> list[Score]:
    """Compute a score per architecture and preset, the best first.

    Over all settings that the rows have, or over those of the preset's protocol alone, for rows of any origin: other
    settings are then listed apart and do not count. An architecture that was trained on such settings alone is scored
    over them; it is not `complete`.
    """
    found = [_score(some, name, protocol_only) for name, some in _by_training(rows)]
    return _ranked([score for score in found if score is not None])


FEWEST_STEPS = 100  # planned for a cell; fewer show that training runs, not what an architecture can do


@dataclass(frozen=True)
class Comparison:
    """Scores that were trained in the same way, the n-th such group of a report; each list has the best first."""

    number: int
    prefix: str  # of headings, where there are several groups
    scores: Sequence[Score]
    on_common_settings: Sequence[Score]  # the same where the settings do not differ, none where none are common

    @property
    def settings_differ(self) -> bool:
        return self.on_common_settings is not self.scores

    @property
    def comparable(self) -> Sequence[Score]:
        """Return the scores to plot and rank: over the same settings, only the complete ones where there are any."""
        whole = [score for score in self.scores if score.complete]
        return whole or self.on_common_settings or self.scores

    @property
    def seeds(self) -> list[int]:
        """Return how many seeds the scores of tasks have, the fewest first."""
        return sorted({task.accuracy[s.headline].seeds for s in self.scores for task in s.tasks.values()})

    @property
    def too_few_steps(self) -> int | None:
        """Return the most steps that were planned for a cell where they are too few to be evidence, else None."""
        rows = [row for s in self.scores for task in s.tasks.values() for by_seed in task.best.values()
                for row in by_seed.values()]  # fmt: skip
        most = max(row.get("planned_steps") or row["steps"] for row in rows)
        return most if most < FEWEST_STEPS else None

    @property
    def tied_with_best(self) -> list[int]:
        """Return the indices in `comparable` of scores whose 95 % interval overlaps that of the best."""
        first, *others = (score.overall[score.headline] for score in self.comparable)
        return [i for i, other in enumerate(others, start=1) if other.overlaps(first)]

    def file(self, name: str) -> str:
        """Return the name of a picture of the group."""
        return f"{name}.png" if self.number == 1 else f"{name}-{self.number}.png"


def by_procedure(made: Sequence[Score]) -> list[Comparison]:
    """Group scores that were trained in the same way, in the order of the first of each group."""
    groups: dict[tuple[str, str, str], list[Score]] = {}
    for score in made:
        groups.setdefault((score.preset, score.protocol, score.changes), []).append(score)
    return [
        Comparison(number, f"{number}. " if len(groups) > 1 else "", group, on_common_settings(group))
        for number, group in enumerate(groups.values(), start=1)
    ]


def on_common_settings(made: Sequence[Score]) -> Sequence[Score]:
    """Recompute scores over the settings that all have, the best first; none where none are common.

    Scores that have the same settings are returned as they are.
    """
    if all(score.settings() == made[0].settings() for score in made):
        return made
    shared = {name: set.intersection(*(score.settings().get(name, set()) for score in made)) for name in made[0].tasks}
    if not any(shared.values()):
        return []
    recomputed = []
    for score in made:
        tasks = {
            name: _task_score(score.preset, name, {s: best for s, best in score.tasks[name].best.items() if s in some})
            for name, some in shared.items()
            if some
        }
        recomputed.append(replace(score, tasks=tasks, overall=_overall(tasks)))
    return _ranked(recomputed)


def renamed(score: Score, name: str, notes: Sequence[str]) -> tuple[Score, str | None]:
    """Return the score under another name, with a sentence where the rows were trained under a different one."""
    if score.architecture == name:
        return score, None
    others = " = ".join(other for other in score.architecture.split(" = ") if other != name)
    notice = f"{name} is the same model to the tasks as {others}"
    return replace(score, architecture=name, notes=(*notes, notice)), notice


def unscored(rows: Sequence[Row]) -> list[str]:
    """List what is left out of architectures and presets that cannot be scored yet."""
    return [
        f"{name} ({some[0]['preset']}): {line}"
        for name, some in _by_training(rows)
        if _score(some, name, protocol_only=False) is None
        for line in chosen_cells(some)[1]
    ]


def _by_training(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Group the rows, each once, of the same model trained in the same way, with its names."""
    groups: dict[tuple[str, str], dict[Key, Row]] = {}
    names: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        identity = row["fingerprint"], row["protocol"]
        groups.setdefault(identity, {}).setdefault(key(row), row)
        names.setdefault(identity, {})[row["architecture"]] = None
    return [(" = ".join(names[identity]), list(some.values())) for identity, some in groups.items()]


def _ranked(made: Sequence[Score]) -> list[Score]:
    """Sort scores: the most complete first, then the best."""
    return sorted(
        made,
        key=lambda score: (
            -len(score.tasks),
            -sum(task.of_protocol for task in score.tasks.values()),
            -score.overall[score.headline].mean,
            score.architecture,
        ),
    )


def _score(rows: list[Row], architecture: str, protocol_only: bool) -> Score | None:
    first = rows[0]
    chosen, left_out = chosen_cells(rows)
    counted = chosen
    if protocol_only:
        within = {name: {s: chosen[name][s] for s in chosen[name] if s in _protocol(first["preset"], name)}
                  for name in chosen}  # fmt: skip
        if any(within.values()):
            counted = within
    tasks = {}
    for name, some in counted.items():
        if some:
            best, lines = of_whole_seeds(name, some)
            left_out += lines
            tasks[name] = _task_score(first["preset"], name, best)
    if not tasks:
        return None
    others = {name: {s: chosen[name][s] for s in chosen[name] if s not in counted[name]} for name in chosen}
    return Score(
        identity=first["fingerprint"],
        protocol=first["protocol"],
        architecture=architecture,
        pattern=first["pattern"],
        preset=first["preset"],
        headline=first["accuracy"],
        selected_on=first["selected_on"],
        parameters=first["parameters"],
        state_size=first["state_size"],
        seeds=tuple(sorted({seed for task in tasks.values() for by_seed in task.best.values() for seed in by_seed})),
        tasks=tasks,
        overall=_overall(tasks),
        left_out=tuple(f"{architecture} ({first['preset']}): {line}" for line in left_out),
        notes=tuple(first["notes"]),
        changes=preset_changes(rows),
        others={name: some for name, some in others.items() if some},
    )


def _task_score(preset: str, name: str, best: BySetting) -> TaskScore:
    protocol = _protocol(preset, name)
    return TaskScore(means(best), best, len(protocol & best.keys()), len(protocol))


def _overall(tasks: Mapping[str, TaskScore]) -> dict[str, Estimate]:
    """Average over tasks; with an interval only where all tasks have the same seeds."""
    found = {}
    for kind in KINDS:
        of_tasks = [mean_by_seed(task.best, kind) for task in tasks.values()]
        if all(means.keys() == of_tasks[0].keys() for means in of_tasks):
            found[kind] = estimate([fmean(means) for means in zip(*(task.values() for task in of_tasks), strict=True)])
        else:
            common = set.intersection(*map(set, of_tasks))
            mean = fmean(task.accuracy[kind].mean for task in tasks.values())
            found[kind] = Estimate(mean, None, None, len(common))
    return found


def _protocol(preset: str, name: str) -> set[str]:
    """Return the task's settings under the preset, as JSON; those of MAD for an unknown preset."""
    pairs = chosen_settings(PRESETS.get(preset, PRESETS["paper"]), [name], {})
    return {json.dumps(dict(setting), sort_keys=True) for _, setting in pairs}
