"""The tables of a report, for the page and the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from hybridtron.mad.report.labels import LABELS, labels
from hybridtron.mad.scoring.estimate import KINDS, estimate
from hybridtron.mad.scoring.results import Row
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.reporting.table import Column, Table, integer_column


def summary(made: Sequence[Score]) -> Table:
    """Return the accuracies that select, with the sizes: a row for each score."""
    rows = [[name, _mean(s, s.headline), *_cells(s, s.headline)] for name, s in zip(labels(made), made, strict=True)]
    names = ["mean", *LABELS.values()]
    return Table([*Table.from_rows(["architecture", *names], rows, right=names).columns, *_sizes(made)])


def accuracies(made: Sequence[Score]) -> Table:
    """Return both kinds of accuracy, that which selects first, with the sizes: two rows for each score."""
    rows = [
        [name, kind, _mean(score, kind), *_cells(score, kind)]
        for name, score in zip(labels(made), made, strict=True)
        for kind in sorted(KINDS, key=lambda kind: kind != score.headline)
    ]
    names = ["mean", *LABELS.values()]
    columns = Table.from_rows(["architecture", "kind", *names], rows, right=names).columns
    return Table([*columns, *_sizes([score for score in made for _ in KINDS])])


def by_setting(made: Sequence[Score], task: str) -> Table:
    """Return accuracy by setting with the selected cells; no rows where no score has the task."""
    having = [
        (name, score) for name, score in zip(labels(made), made, strict=True)
        if task in score.tasks or task in score.others
    ]  # fmt: skip
    counted = [score.tasks[task].best if task in score.tasks else {} for _, score in having]
    apart = [score.others.get(task, {}) for _, score in having]
    rows = [
        [
            setting_text(task, json.loads(setting)) + suffix,
            *(
                _with_cells(column[setting], score) if setting in column else None
                for column, (_, score) in zip(columns, having, strict=True)
            ),
        ]
        for columns, suffix in ((counted, ""), (apart, "\nnot of the preset, in no mean"))
        for setting in dict.fromkeys(setting for column in columns for setting in column)
    ]
    return Table.from_rows(["setting", *(name for name, _ in having)], rows)


def architectures(made: Sequence[Score]) -> Table:
    """Return the layers and the sizes of each architecture, and how it was made."""
    changed = [[f"{score.preset} changed: {score.changes}"] if score.changes else [] for score in made]
    return Table([
        Column("architecture", labels(made)),
        Column("layers", [score.pattern for score in made]),
        *_sizes(made),
        Column("made by", ["; ".join((*s.notes, *more)) or None for s, more in zip(made, changed, strict=True)]),
    ])  # fmt: skip


def _sizes(made: Sequence[Score]) -> list[Column]:
    return [
        integer_column("parameters", [score.parameters for score in made]),
        integer_column("state", [score.state_size for score in made]),
    ]


def _mean(score: Score, kind: str) -> str:
    """Return the mean over the tasks, with a star where it is no MAD score."""
    return str(score.overall[kind]) + ("" if score.complete else "*")


def _cells(score: Score, kind: str) -> list[str | None]:
    """Return the accuracy on each task, and below it on how many settings where these are not all."""
    found = [score.tasks.get(task) for task in TASKS]
    return [None if t is None else "\n".join(filter(None, (str(t.accuracy[kind]), t.coverage()))) for t in found]


def _with_cells(best: Mapping[int, Row], score: Score) -> str:
    found = estimate([row[f"test_{score.headline}"] for row in best.values()])
    cells = dict.fromkeys(f"lr {row['lr']:g}, decay {row['weight_decay']:g}" for row in best.values())
    return f"{found}\n{'; '.join(cells)}"
