"""The scores as one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from hybridtron.mad.report.naming import LABELS, labels
from hybridtron.mad.report.plots import picture_file
from hybridtron.mad.report.wording import (
    NONE,
    cell,
    common_words,
    conditions,
    group_number,
    mean,
    settings_words,
    tasks_words,
)
from hybridtron.mad.scoring.aggregate import alike, by_procedure, differ, to_compare
from hybridtron.mad.scoring.estimate import KINDS, estimate
from hybridtron.mad.scoring.results import Row
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.reporting.page import figure, page, section

CURVES = "The chosen cell of every seed, on the first setting."


def html_page(made: Sequence[Score], warnings: Sequence[str], images: Mapping[str, bytes]) -> str:
    """The page; `images` are PNG by file name."""
    groups = by_procedure(made)
    sections = [
        '<section class="verdict">'
        + "".join(f'<p class="lead">{group_number(n, groups)}{_lead(group)}</p>' for n, group in enumerate(groups, 1))
        + "<ul>"
        + "".join(f"<li>{escape(line)}</li>" for line in conditions(made))
        + "</ul></section>",
        *(part for n, group in enumerate(groups, 1) for part in _group(group, n, group_number(n, groups), images)),
        section("Left out", "".join(f"<p>{escape(line)}</p>" for line in warnings)),
    ]
    header = '<header><p class="eyebrow">Mechanistic architecture design</p><h1>MAD</h1></header>'
    return page("MAD", header, sections, "the same numbers are in scores.json beside this page")


def _lead(group: Sequence[Score]) -> str:
    """The best of those that were trained alike."""
    pictured = to_compare(group)
    best = pictured[0]
    lead = f"<b>{escape(labels(pictured)[0])}</b> reaches {best.overall[best.headline]} % over {tasks_words(best)}"
    return lead + ("." if best.complete else f", {settings_words(best)}.")


def _group(group: Sequence[Score], number: int, named: str, images: Mapping[str, bytes]) -> list[str]:
    """Tables and pictures of what was trained alike."""
    common = alike(group) if differ(group) else []
    missing = len(group) - len(to_compare(group))
    note = f"Without {missing} that {'is' if missing == 1 else 'are'} not complete." if missing else ""
    compared = section(f"{named}Compared", _overall(common), f"{common_words(common).capitalize()}.") if common else ""
    return [
        compared,
        section(f"{named}Scores", _overall(group)),
        section(f"{named}Tasks", figure(images[picture_file("radar", number)], "radar of the tasks"), note),
        section(f"{named}Learning", figure(images[picture_file("curves", number)], "learning curves"), CURVES),
        *(section(f"{named}{LABELS[task].capitalize()}", _by_setting(group, task)) for task in TASKS),
        section(f"{named}Architectures", _architectures(group)),
    ]


def _overall(made: Sequence[Score]) -> str:
    header = ["architecture", "kind", "mean", *(LABELS[task] for task in TASKS)]
    rows = []
    for name, score in zip(labels(made), made, strict=True):
        for kind in sorted(KINDS, key=lambda kind: kind != score.headline):
            rows.append([name, kind, mean(score, kind), *(cell(score, task, kind) for task in TASKS)])
    return _table(header, rows)


def _by_setting(made: Sequence[Score], task: str) -> str:
    """Accuracy by setting, with the cells that were chosen; nothing where none has the task."""
    there = [
        (name, score) for name, score in zip(labels(made), made, strict=True)
        if task in score.tasks or task in score.others
    ]  # fmt: skip
    counted = [score.tasks[task].best if task in score.tasks else {} for _, score in there]
    apart = [score.others.get(task, {}) for _, score in there]
    rows = []
    for columns, suffix in ((counted, ""), (apart, "\nnot of the preset, in no mean")):
        for setting in dict.fromkeys(setting for column in columns for setting in column):
            cells = [
                _with_cells(column[setting], score) if setting in column else NONE
                for column, (_, score) in zip(columns, there, strict=True)
            ]
            rows.append([setting_text(task, json.loads(setting)) + suffix, *cells])
    return _table(["setting", *(name for name, _ in there)], rows) if rows else ""


def _with_cells(best: Mapping[int, Row], score: Score) -> str:
    found = estimate([row[f"test_{score.headline}"] for row in best.values()])
    cells = dict.fromkeys(f"lr {row['lr']:g}, decay {row['weight_decay']:g}" for row in best.values())
    return f"{found}\n{'; '.join(cells)}"


def _architectures(made: Sequence[Score]) -> str:
    rows = [
        [name, score.pattern, f"{score.parameters:,}", f"{score.state_size:,}",
         "; ".join((*score.notes, *([f"{score.preset} changed: {score.changes}"] if score.changes else []))) or NONE]
        for name, score in zip(labels(made), made, strict=True)
    ]  # fmt: skip
    return _table(["architecture", "layers", "parameters", "state", "made by"], rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr><th>{_text(row[0])}</th>" + "".join(f"<td>{_text(c)}</td>" for c in row[1:]) + "</tr>"
                   for row in rows)  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(cell: Any) -> str:
    """What follows a line end is small."""
    first, _, rest = str(cell).partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")
