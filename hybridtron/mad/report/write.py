"""The report of results folders: tables in the terminal, and a folder with the page, its pictures and the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.mad.report.naming import LABELS, labels, preset_words
from hybridtron.mad.report.page import html_page
from hybridtron.mad.report.plots import curves, picture_file, radar
from hybridtron.mad.report.wording import cell, common_words, conditions, group_number, mean
from hybridtron.mad.scoring.aggregate import alike, by_procedure, differ, protocol_scores, to_compare, unscored
from hybridtron.mad.scoring.results import Row, read_rows
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS
from hybridtron.reporting.publish import publish, require_usable


def read_scores(folders: Sequence[Path]) -> tuple[list[Score], list[str]]:
    """The scores of all rows of these folders, which may hold the same ones, and what was left out on the way.

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
    """scores.json, report.html and pictures in a folder that is new, empty or an earlier report.

    The pictures are radar.png and curves.png of what was trained as the first score was, then radar-2.png and so on.
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


def print_scores(made: Sequence[Score]) -> None:
    """For each way of training a table for the terminal, a line per architecture, a column per task; where settings
    differ one more over common settings; then what the numbers are."""
    from rich.console import Console

    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    groups = by_procedure(made)
    for number, group in enumerate(groups, start=1):
        if len(groups) > 1:
            console.print(f"{group_number(number, groups)}{preset_words(group[0])}", markup=False)
        _print_table(console, group)
        common = alike(group)
        if differ(group) and common:
            console.print(f"\n{common_words(common)}:", soft_wrap=True)
            _print_table(console, common)
        console.print()
    for line in conditions(made):
        console.print(line, soft_wrap=True, markup=False)


def _print_table(console: Any, made: Sequence[Score]) -> None:
    from rich.table import Table

    from hybridtron.accounting.tables import print_table

    table = Table(box=None, pad_edge=False)
    table.add_column("architecture")
    for name in ("mean", *(LABELS[task] for task in TASKS), "parameters", "state"):
        table.add_column(name, justify="right")
    for name, score in zip(labels(made), made, strict=True):
        table.add_row(
            name,
            mean(score, score.headline),
            *(cell(score, task) for task in TASKS),
            f"{score.parameters:,}",
            f"{score.state_size:,}",
        )
    print_table(console, table)
