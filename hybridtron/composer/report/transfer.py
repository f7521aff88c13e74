"""A transfer study in the terminal and as a page with its picture and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from hybridtron.composer.transfer.outcome import Grown, SizeResult, Transfer
from hybridtron.files import json_text, replace_file
from hybridtron.reporting.page import render
from hybridtron.reporting.pictures import FAINT, HUES, INK, label_axes, legend_below, new_figure, png
from hybridtron.reporting.shown import show
from hybridtron.reporting.table import Column, Table, decimal_column, integer_column

PAGE, NUMBERS, PICTURE = "report.html", "transfer.json", "transfer.png"
WIDTH, HEIGHT, SMALL = 8.0, 4.6, 9.0  # inches of a panel, text size of labels


def table(result: SizeResult) -> Table:
    """Return the patterns of a size with the score in the search, the losses and what each was grown to."""
    grown = result.grown
    ranks = _loss_ranks(result)
    seeds = list(dict.fromkeys(seed for one in grown for seed in one.losses))
    several = [] if len(seeds) < 2 else [
        decimal_column(f"seed {seed}", [one.losses.get(seed) for one in grown], 4) for seed in seeds
    ]  # fmt: skip
    return Table([
        Column("pattern", [one.name for one in grown]),
        Column("chosen as", [one.candidate.role for one in grown]),
        integer_column("rank by score", [one.candidate.rank for one in grown]),
        decimal_column("score", [one.candidate.score for one in grown]),
        decimal_column("loss", [one.loss for one in grown], 4),
        integer_column("rank by loss", [ranks.get(one.name) for one in grown]),
        *several,
        Column("grown to", [one.run.model.pattern for one in grown]),
        integer_column("layers", [len(one.run.model.layer_names) for one in grown]),
        integer_column("parameters", [one.parameters for one in grown]),
    ])  # fmt: skip


def _loss_ranks(result: SizeResult) -> dict[str, int]:
    trained = [one for one in result.grown if one.loss is not None]
    ordered = sorted(trained, key=lambda one: one.loss or 0.0)
    return {one.name: number for number, one in enumerate(ordered, start=1)}


@show.register(Transfer)
def show_transfer(transfer: Transfer, console: Console) -> None:
    """Print a table and the verdict of each size."""
    for result in transfer.sizes:
        console.print(f"{result.size}\n{table(result).to_terminal(console)}", markup=False, soft_wrap=True, end="")
        console.print("\n".join(result.verdict), markup=False, soft_wrap=True)
    console.print("\n".join([transfer.growth.sentence, *transfer.notes]), markup=False, soft_wrap=True)


def write_transfer(transfer: Transfer, folder: Path) -> Path:
    """Write the page, transfer.json and the picture to the study's folder; return the page."""
    image = draw(transfer)
    replace_file(folder / PICTURE, image)
    replace_file(folder / NUMBERS, json_text(transfer.as_json()) + "\n")
    shown = render(__package__, "transfer.html.j2", transfer=transfer, table=table, image=image)
    replace_file(folder / PAGE, shown)
    return folder / PAGE


def draw(transfer: Transfer) -> bytes:
    """Return a PNG with the loss of each grown pattern over its score in the search, a panel for each size."""
    figure = new_figure(WIDTH, HEIGHT * len(transfer.sizes))
    panels = figure.subplots(len(transfer.sizes), squeeze=False)[:, 0]
    seeds = len(transfer.seeds)
    for axes, result in zip(panels, transfer.sizes, strict=True):
        for group, colour, label in _groups(result):
            if not group:
                continue
            look: dict[str, Any] = {"fmt": "o", "color": colour, "ecolor": FAINT, "elinewidth": 1, "capsize": 2}
            axes.errorbar(
                [one.candidate.score for one in group], [one.loss for one in group],
                xerr=result.score_error, yerr=result.loss_error, label=label, **look,
            )  # fmt: skip
            for one in group:
                axes.annotate(
                    one.short, (one.candidate.score, one.loss), xytext=(6, 5), textcoords="offset points",
                    fontsize=SMALL, color=INK,
                )  # fmt: skip
        unscored = [one for one in result.grown if one.candidate.score is None and one.loss is not None]
        for one in unscored:
            axes.axhline(one.loss, color=HUES[2], linewidth=1, linestyle="--", label=f"{one.short}, without a score")
        axes.margins(x=0.15, y=0.15)
        found = result.agreement
        said = f": Spearman {found.spearman:.2f} over {found.n} patterns" if found else ""
        y_label = "held-out loss" + (f", mean over {seeds} seeds" if seeds > 1 else "")
        label_axes(axes, f"{result.size}{said}", f"score in the search ({transfer.scores.quantity})", y_label)
    if any(axes.get_legend_handles_labels()[0] for axes in panels):
        legend_below(figure, panels, 3, SMALL)
    return png(figure)


def _groups(result: SizeResult) -> list[tuple[list[Grown], str, str]]:
    """Return the ranked patterns in two groups, with the colour and the label of each."""
    baselines = [one for one in result.ranked if "baseline" in one.candidate.role]
    rest = [one for one in result.ranked if one not in baselines]
    errors = [error for error in (result.score_error, result.loss_error) if error is not None]
    bars = " (± 1 standard error, pooled)" if errors else ""
    return [(rest, HUES[0], f"of the search{bars}"), (baselines, HUES[1], "baselines")]
