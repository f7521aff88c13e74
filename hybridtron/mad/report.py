"""The report of results folders: tables in the terminal, pictures, and one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.mad.estimate import KINDS, estimate
from hybridtron.mad.plots import LABELS, curves, labels, preset_words, radar
from hybridtron.mad.presets import PRESETS
from hybridtron.mad.results import Row, read_rows
from hybridtron.mad.score import Score
from hybridtron.mad.scoring import in_common, protocol_scores
from hybridtron.mad.tasks import TASKS, setting_text
from hybridtron.reporting.page import figure, page, section
from hybridtron.reporting.publish import publish, require_usable

NONE = "–"
CURVES = "The chosen cell of every seed, on the first setting."


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
        raise UserError(f"{', '.join(map(str, folders))}: no setting has all its cells yet")
    scored = {(score.identity, score.preset) for score in made}
    unscored = dict.fromkeys(row["architecture"] for row in rows if (row["fingerprint"], row["preset"]) not in scored)
    warnings += [f"{name}: no setting has all its cells yet, left out" for name in unscored]
    return made, warnings + [line for score in made for line in score.left_out]


def write_report(made: Sequence[Score], warnings: Sequence[str], out: Path) -> None:
    """scores.json, radar.png, curves.png and report.html in a folder that is new, empty or an earlier report."""
    require_usable(out)
    pictured = _ranked_alike(made)
    images = {"radar.png": radar(pictured), "curves.png": curves(pictured)}
    data = {
        "scores": [score.as_json() for score in made],
        "over_common_settings": [score.as_json() for score in _alike(made)] if _differ(made) else [],
        "warnings": list(warnings),
    }
    text = json.dumps(data, indent=2, allow_nan=False) + "\n"
    publish(out, {"scores.json": text.encode(), "report.html": html_page(made, warnings, images).encode(), **images})


def print_scores(made: Sequence[Score]) -> None:
    """A table for the terminal: one line per architecture, one column per task; one more over common settings."""
    from rich.console import Console

    console = Console(highlight=False, width=None if Console().is_terminal else 160)
    _print_table(console, made)
    for line in conditions(made):
        console.print(line, soft_wrap=True, markup=False)
    alike = _alike(made)
    if _differ(made) and alike:
        console.print(f"\n{_common_words(alike)}:", soft_wrap=True)
        _print_table(console, alike)


def _print_table(console: Any, made: Sequence[Score]) -> None:
    from rich.table import Table

    from hybridtron.accounting.tables import print_table

    table = Table(box=None, pad_edge=False)
    table.add_column("architecture")
    for name in (*(LABELS[task].replace("\n", " ") for task in TASKS), "mean", "parameters", "state"):
        table.add_column(name, justify="right")
    for name, score in zip(labels(made), made, strict=True):
        table.add_row(
            name,
            *(_cell(score, task) for task in TASKS),
            _mean(score, score.headline),
            f"{score.parameters:,}",
            f"{score.state_size:,}",
        )
    print_table(console, table)


def conditions(made: Sequence[Score]) -> list[str]:
    """What the numbers are, in words."""
    lines = []
    for preset, changes in dict.fromkeys((score.preset, score.changes) for score in made):
        some = [score for score in made if (score.preset, score.changes) == (preset, changes)]
        first = some[0]
        seeds = sorted({task.accuracy[first.headline].seeds for score in some for task in score.tasks.values()})
        words = f"{preset_words(first)} ({changes})" if changes else preset
        words += f": test accuracy in % ({first.headline}) of the cell that is best on the {first.selected_on} split"
        if first.selected_on == "test":
            words += ", the one that is reported, as mad-lab does it: too good"
        if preset in PRESETS and PRESETS[preset].settings == "baseline":
            words += "; the baseline of each task alone"
        counted = " or ".join(map(str, seeds))
        interval = "± is a 95 % interval over seeds" if max(seeds) > 1 else "one seed, so no interval"
        lines.append(f"{words}; {counted} seed{'s' if max(seeds) > 1 else ''}, {interval}")
    if not all(score.complete for score in made):
        lines.append("* over fewer than six tasks, or not over the settings that the preset has: no MAD score")
    if _differ(made) and not _alike(made):
        lines.append("no setting is common to all: their means do not compare")
    for name, score in zip(labels(made), made, strict=True):
        others = [f"{task} {setting_text(task, json.loads(s))}" for task, some in score.others.items() for s in some]
        if others:
            lines.append(f"{name}: not settings of {score.preset}, in no mean: {'; '.join(others)}")
    return lines


def _differ(made: Sequence[Score]) -> bool:
    return any(score.settings() != made[0].settings() for score in made)


def _alike(made: Sequence[Score]) -> Sequence[Score]:
    """The scores over the same settings; none where they have none in common."""
    return in_common(made) if _differ(made) else made


def _ranked_alike(made: Sequence[Score]) -> Sequence[Score]:
    """What is pictured and called the best: over the same settings, the complete ones alone where there are any."""
    whole = [score for score in made if score.complete] or made
    return _alike(whole) or whole


def _common_words(alike: Sequence[Score]) -> str:
    return f"{_settings_words(alike[0])} that all have"


def _settings_words(score: Score) -> str:
    count = sum(len(task.best) for task in score.tasks.values())
    return f"on {count} setting{'s' if count > 1 else ''}"


def html_page(made: Sequence[Score], warnings: Sequence[str], images: Mapping[str, bytes]) -> str:
    """The page; `images` are PNG by file name."""
    alike = _alike(made)
    differ = _differ(made) and bool(alike)
    pictured = _ranked_alike(made)
    best = pictured[0]
    lead = f"<b>{escape(labels(pictured)[0])}</b> reaches {best.overall[best.headline]} % over {_tasks(best)}"
    if not best.complete:
        lead += f", {_settings_words(best)}"
    missing = len(made) - len(pictured)
    note = f"Without {missing} that {'is' if missing == 1 else 'are'} not complete." if missing else ""
    sections = [
        f'<section class="verdict"><p class="lead">{lead}.</p><ul>'
        + "".join(f"<li>{escape(line)}</li>" for line in conditions(made))
        + "</ul></section>",
        section(
            "Compared", _overall(alike) if differ else "", f"{_common_words(alike).capitalize()}." if differ else ""
        ),
        section("Scores", _overall(made)),
        section("Tasks", figure(images["radar.png"], "radar of the tasks"), note),
        section(
            "Learning",
            figure(images["curves.png"], "learning curves"),
            "The chosen cell of every seed, on the first setting.",
        ),
        *(
            section(_title(task), _by_setting(made, task))
            for task in TASKS
            if any(task in s.tasks or task in s.others for s in made)
        ),
        section("Architectures", _architectures(made)),
        section("Left out", "".join(f"<p>{escape(line)}</p>" for line in warnings)),
    ]
    header = '<header><p class="eyebrow">Mechanistic architecture design</p><h1>MAD</h1></header>'
    return page("MAD", header, sections, "the same numbers are in scores.json beside this page")


def _overall(made: Sequence[Score]) -> str:
    header = ["architecture", "kind", "mean", *(LABELS[task].replace("\n", " ") for task in TASKS)]
    rows = []
    for name, score in zip(labels(made), made, strict=True):
        for kind in sorted(KINDS, key=lambda kind: kind != score.headline):
            rows.append([name, kind, _mean(score, kind), *(_cell(score, task, kind) for task in TASKS)])
    return _table(header, rows)


def _by_setting(made: Sequence[Score], task: str) -> str:
    """Accuracy by setting, with the cells that were chosen."""
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
    return _table(["setting", *(name for name, _ in there)], rows)


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


def _tasks(score: Score) -> str:
    return "the six tasks" if len(score.tasks) == len(TASKS) else ", ".join(score.tasks)


def _cell(score: Score, task: str, kind: str | None = None) -> str:
    if task not in score.tasks:
        return NONE
    found = score.tasks[task]
    return "\n".join(filter(None, (str(found.accuracy[kind or score.headline]), found.coverage())))


def _mean(score: Score, kind: str) -> str:
    return str(score.overall[kind]) + ("" if score.complete else "*")


def _title(task: str) -> str:
    return LABELS[task].replace("\n", " ").capitalize()


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr><th>{_text(row[0])}</th>" + "".join(f"<td>{_text(c)}</td>" for c in row[1:]) + "</tr>"
                   for row in rows)  # fmt: skip
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(cell: Any) -> str:
    """What follows a line end is small."""
    first, _, rest = str(cell).partition("\n")
    return escape(first) + (f"<small>{escape(rest)}</small>" if rest else "")
