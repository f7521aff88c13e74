"""The report of results folders: tables in the terminal, and a folder with the page, its pictures and the numbers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from hybridtron.errors import UserError
from hybridtron.mad.report import tables
from hybridtron.mad.report.labels import LABELS, labels, preset_words, setting_names
from hybridtron.mad.report.plots import curves, radar
from hybridtron.mad.scoring.aggregate import Comparison, by_procedure, scores, unscored
from hybridtron.mad.scoring.results import Row, read_rows
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.training.presets import PRESETS
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.page import render, render_text
from hybridtron.reporting.publish import publish, require_usable
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import terminal


def read_scores(folders: Sequence[str | Path]) -> tuple[list[Score], list[str]]:
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
    made = scores(rows, protocol_only=True)
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
    for group in groups:
        images |= {group.file("radar"): radar(group.comparable), group.file("curves"): curves(group.comparable)}
    data = {
        "scores": [score.as_json() for score in made],
        "over_common_settings": [
            score.as_json() for group in groups if group.settings_differ for score in group.on_common_settings
        ],
        "warnings": list(warnings),
    }
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    shown = render(
        __package__, "mad.html.j2", groups=groups, conditions=conditions(groups), warnings=warnings, images=images,
        tables=tables, labels=labels, task_labels=LABELS,
    )  # fmt: skip
    publish(out, {"scores.json": text.encode(), "report.html": shown.encode(), **images})


def conditions(groups: Sequence[Comparison]) -> list[str]:
    """Return how the scores were obtained and which of them compare, in lines."""
    baseline = [name for name, preset in PRESETS.items() if preset.settings == "baseline"]
    content = {"groups": groups, "labels": labels, "setting_names": setting_names, "baseline_presets": baseline}
    return render_text(__package__, "conditions.txt.j2", **content).splitlines()


def print_scores(made: Sequence[Score], console: Console | None = None) -> None:
    """Print a table for each way of training, a line per architecture and a column per task, then the conditions.

    Where settings differ, a second table is over the settings that all have.
    """
    console = console or terminal()
    groups = by_procedure(made)
    for group in groups:
        if group.prefix:
            console.print(f"{group.prefix}{preset_words(group.scores[0])}", markup=False)
        console.file.write(tables.summary(group.scores).to_terminal(console))
        common = group.on_common_settings
        if group.settings_differ and common:
            console.print(f"\non {plural(common[0].num_settings, 'setting')} that all have:", soft_wrap=True)
            console.file.write(tables.summary(common).to_terminal(console))
        console.print()
    for line in conditions(groups):
        console.print(line, soft_wrap=True, markup=False)


@show.register(Score)
def _show_score(score: Score, console: Console) -> None:
    print_scores([score], console)
