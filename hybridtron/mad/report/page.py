"""The scores as one self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from hybridtron.mad.report import sentences
from hybridtron.mad.report.labels import LABELS, labels
from hybridtron.mad.report.plots import picture_file
from hybridtron.mad.scoring.aggregate import alike, by_procedure, differ, to_compare
from hybridtron.mad.scoring.estimate import KINDS, estimate
from hybridtron.mad.scoring.results import Row
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.reporting.page import blocks, figure, page, section, verdict
from hybridtron.reporting.table import Table

CURVES = "The selected cell of every seed, on the first setting."


def html_page(made: Sequence[Score], warnings: Sequence[str], images: Mapping[str, bytes]) -> str:
    """Return the page; `images` are PNG by file name."""
    groups = by_procedure(made)
    sections = [
        verdict(
            [sentences.group_number(n, groups) + _lead(group) for n, group in enumerate(groups, 1)],
            sentences.conditions(made),
        ),
        *(
            part
            for n, group in enumerate(groups, 1)
            for part in _group(group, n, sentences.group_number(n, groups), images)
        ),
        section("Left out", *map(blocks.paragraph, warnings)),
    ]
    header = blocks.header("Mechanistic architecture design", "MAD")
    return page("MAD", header, sections, "the same numbers are in scores.json beside this page")


def _lead(group: Sequence[Score]) -> Markup:
    """Return a sentence on the best score of a group."""
    pictured = to_compare(group)
    best = pictured[0]
    lead = Markup("<b>{}</b> reaches {} % over {}{}.")
    settings = "" if best.complete else f", {sentences.settings_words(best)}"
    return lead.format(labels(pictured)[0], best.overall[best.headline], sentences.tasks_words(best), settings)


def _group(group: Sequence[Score], number: int, prefix: str, images: Mapping[str, bytes]) -> list[Markup]:
    """Render the tables and pictures of one way of training."""
    common = alike(group) if differ(group) else []
    compared = sentences.common_words(common) if common else ""
    missing = len(group) - len(to_compare(group))
    note = f"Without {missing} that {'is' if missing == 1 else 'are'} not complete." if missing else ""
    return [
        section(f"{prefix}Compared", _overall(common), note=f"{compared.capitalize()}."),
        section(f"{prefix}Scores", _overall(group)),
        section(f"{prefix}Tasks", figure(images[picture_file("radar", number)], "radar of the tasks"), note=note),
        section(f"{prefix}Learning", figure(images[picture_file("curves", number)], "learning curves"), note=CURVES),
        *(section(f"{prefix}{LABELS[task].capitalize()}", _by_setting(group, task)) for task in TASKS),
        section(f"{prefix}Architectures", _architectures(group)),
    ]


def _overall(made: Sequence[Score]) -> Markup:
    tasks = [LABELS[task] for task in TASKS]
    rows = [
        [name, kind, sentences.mean(score, kind), *(sentences.cell(score, task, kind) for task in TASKS)]
        for name, score in zip(labels(made), made, strict=True)
        for kind in sorted(KINDS, key=lambda kind: kind != score.headline)
    ]
    return Table.from_rows(["architecture", "kind", "mean", *tasks], rows, right=["mean", *tasks]).to_html()


def _by_setting(made: Sequence[Score], task: str) -> Markup:
    """Render accuracy by setting with the selected cells; nothing where no score has the task."""
    there = [
        (name, score) for name, score in zip(labels(made), made, strict=True)
        if task in score.tasks or task in score.others
    ]  # fmt: skip
    counted = [score.tasks[task].best if task in score.tasks else {} for _, score in there]
    apart = [score.others.get(task, {}) for _, score in there]
    rows = [
        [
            setting_text(task, json.loads(setting)) + suffix,
            *(
                _with_cells(column[setting], score) if setting in column else None
                for column, (_, score) in zip(columns, there, strict=True)
            ),
        ]
        for columns, suffix in ((counted, ""), (apart, "\nnot of the preset, in no mean"))
        for setting in dict.fromkeys(setting for column in columns for setting in column)
    ]
    return Table.from_rows(["setting", *(name for name, _ in there)], rows).to_html()


def _with_cells(best: Mapping[int, Row], score: Score) -> str:
    found = estimate([row[f"test_{score.headline}"] for row in best.values()])
    cells = dict.fromkeys(f"lr {row['lr']:g}, decay {row['weight_decay']:g}" for row in best.values())
    return f"{found}\n{'; '.join(cells)}"


def _architectures(made: Sequence[Score]) -> Markup:
    rows = []
    for name, score in zip(labels(made), made, strict=True):
        changed = [f"{score.preset} changed: {score.changes}"] if score.changes else []
        made_by = "; ".join((*score.notes, *changed)) or None
        rows.append([name, score.pattern, f"{score.parameters:,}", f"{score.state_size:,}", made_by])
    head = ["architecture", "layers", "parameters", "state", "made by"]
    return Table.from_rows(head, rows, right=["parameters", "state"]).to_html()
