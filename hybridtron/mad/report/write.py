"""The report of results folders: tables in the terminal, and a folder with the page, its pictures and the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hybridtron.errors import UserError
from hybridtron.mad.report.labels import LABELS, labels, preset_words
from hybridtron.mad.report.page import html_page
from hybridtron.mad.report.plots import curves, picture_file, radar
from hybridtron.mad.report.sentences import cell, common_words, conditions, group_number, mean
from hybridtron.mad.scoring.aggregate import alike, by_procedure, differ, protocol_scores, to_compare, unscored
from hybridtron.mad.scoring.results import Row, read_rows
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS
from hybridtron.reporting.publish import publish, require_usable
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Table, terminal


def read_scores(folders: Sequence[Path]) -> tuple[list[Score], list[str]]:
    """Return the scores of all rows of these folders, which may hold the same ones, and what was left out.

    Raises:
        UserError: where a folder has no results, or no setting is complete.
    """
    rows: list[Row] = []
    warnings: list[str] = []
    for folder in folders:
        some, found = read_rows(folder)
        rows += some
        warnings += found
    made = protocol_scores(rows)
    if not made:
        why = f" ({warnings[0]}{f', and {len(warnings) - 1} more' if warnings[1:] else ''})" if warnings else ""
        raise UserError(f"{', '.join(map(str, folders))}: no setting has all its cells yet{why}")
    return made, warnings + unscored(rows) + [line for score in made for line in score.left_out]


def write_report(made: Sequence[Score], warnings: Sequence[str], out: Path) -> None:
    """Write scores.json, report.html and pictures to a folder that is new, empty or an earlier report.

    The pictures are radar.png and curves.png for the first way of training, then radar-2.png and so on.
    """
    require_usable(out)
    groups = by_procedure(made)
    images: dict[str, bytes] = {}
    for number, group in enumerate(groups, start=1):
        pictured = to_compare(group)
        images |= {picture_file("radar", number): radar(pictured), picture_file("curves", number): curves(pictured)}
    data = {
        "scores": [score.as_json() for score in made],
        "over_common_settings": [score.as_json() for group in groups if differ(group) for score in alike(group)],
        "warnings": list(warnings),
    }
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    publish(out, {"scores.json": text.encode(), "report.html": html_page(made, warnings, images).encode(), **images})


def print_scores(made: Sequence[Score], console: Console | None = None) -> None:
    """Print a table for each way of training, a line per architecture and a column per task, then the conditions.

    Where settings differ, a second table is over the settings that all have.
    """
    console = console or terminal()
    groups = by_procedure(made)
    for number, group in enumerate(groups, start=1):
        if len(groups) > 1:
            console.print(f"{group_number(number, groups)}{preset_words(group[0])}", markup=False)
        console.file.write(_table(group).to_terminal(console))
        common = alike(group)
        if differ(group) and common:
            console.print(f"\n{common_words(common)}:", soft_wrap=True)
            console.file.write(_table(common).to_terminal(console))
        console.print()
    for line in conditions(made):
        console.print(line, soft_wrap=True, markup=False)


@show.register(Score)
def _show_score(score: Score, console: Console) -> None:
    print_scores([score], console)


def _table(made: Sequence[Score]) -> Table:
    columns = ["mean", *(LABELS[task] for task in TASKS), "parameters", "state"]
    rows = [
        [name, mean(score, score.headline), *(cell(score, task) for task in TASKS),
         f"{score.parameters:,}", f"{score.state_size:,}"]
        for name, score in zip(labels(made), made, strict=True)
    ]  # fmt: skip
    return Table.from_rows(["architecture", *columns], rows, right=columns)
