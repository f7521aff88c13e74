"""The pictures of a report, as PNG: a radar of the tasks, and how accuracy grew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hybridtron.mad.report.labels import LABELS, labels, preset_words
from hybridtron.mad.scoring.results import Row
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.tasks.protocol import TASKS, setting_text
from hybridtron.reporting.numbers import plural, short_number
from hybridtron.reporting.pictures import FAINT, GRID, HUES, INK, legend_below, new_figure, png, style_axes

MOST_SHOWN = len(HUES)  # architectures in one picture


def radar(scores: Sequence[Score]) -> bytes:
    """Draw a ring of axes, one per task, and a polygon for each of the best architectures."""
    figure = new_figure(7.4, 6.2)
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    angles = np.linspace(0, 2 * math.pi, len(TASKS), endpoint=False)
    for name, score, hue in zip(labels(scores, with_preset=False), scores, HUES, strict=False):
        there = [(angle, score.tasks[task]) for angle, task in zip(angles, TASKS, strict=True) if task in score.tasks]
        around = [angle for angle, _ in there]
        estimates = [task.accuracy[score.headline] for _, task in there]
        means = [estimate.mean for estimate in estimates]
        line = {"color": hue, "linewidth": 1.8, "marker": "o", "markersize": 3.5, "label": name, "zorder": 3}
        axes.plot([*around, around[0]], [*means, means[0]], **line)
        axes.fill(around, means, color=hue, alpha=0.08, zorder=2)
        for angle, estimate in zip(around, estimates, strict=True):
            if estimate.low is not None and estimate.high is not None:
                ends = [max(estimate.low, 0), min(estimate.high, 1)]
                axes.plot([angle, angle], ends, color=hue, linewidth=2.2, alpha=0.45, solid_capstyle="butt", zorder=2)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["25", "50", "75", "100 %"], color=FAINT, fontsize=8)
    axes.set_rlabel_position(30)
    axes.set_xticks(angles, [LABELS[task].replace(" ", "\n") for task in TASKS], color=INK, fontsize=9.5)
    for angle, label in zip(angles, axes.get_xticklabels(), strict=True):
        side = math.sin(angle)
        label.set_horizontalalignment("center" if abs(side) < 0.1 else "left" if side > 0 else "right")
    axes.tick_params(axis="x", pad=10)
    axes.grid(color=GRID, linewidth=0.9)
    axes.spines["polar"].set_color(GRID)
    axes.set_title(_title(scores), loc="left", fontsize=11.5, fontweight="bold", color=INK, pad=26)
    _legend(figure, [axes], scores, columns=2)
    return png(figure)


def curves(scores: Sequence[Score]) -> bytes:
    """Draw accuracy on the selecting split against steps: a panel per task, on its first setting."""
    from matplotlib.ticker import MaxNLocator

    tasks = [task for task in TASKS if any(task in score.tasks for score in scores)]
    columns = min(3, len(tasks))
    rows = -(-len(tasks) // columns)
    figure = new_figure(3.4 * columns + 0.6, 2.7 * rows + 0.7)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(tasks) :]:
        axes.set_visible(False)
    for axes, task in zip(grid.flat, tasks, strict=False):
        shown: set[str] = set()
        for name, score, hue in zip(labels(scores, with_preset=False), scores, HUES, strict=False):
            if task not in score.tasks:
                continue
            chosen = next(iter(score.tasks[task].best.values()))
            for row in chosen.values():
                shown.add(setting_text(task, row["setting"]))
                _curve(axes, row, score.headline, hue, name)
        axes.set_title(LABELS[task], loc="left", fontsize=10, fontweight="bold", color=INK)
        axes.set_title(", ".join(sorted(shown)), loc="right", fontsize=7.5, color=FAINT)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "25", "50", "75", "100 %"])
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: short_number(value))
        style_axes(axes, 8)
    for axes in grid[-1]:
        axes.set_xlabel("steps", fontsize=9, color=INK)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy", fontsize=9, color=INK)
    _legend(figure, grid.flat, scores, columns=min(2, len(tasks)))
    return png(figure)


def _curve(axes: Any, row: Row, kind: str, hue: str, name: str) -> None:
    steps = [point[0] for point in row["curve"]]
    values = [point[2 if kind == "micro" else 3] for point in row["curve"]]
    named = name if name not in axes.get_legend_handles_labels()[1] else None
    axes.plot(steps, values, color=hue, linewidth=1.5, alpha=0.85, label=named)
    axes.plot(steps[-1], values[-1], marker="o", markersize=3, color=hue)


def _title(scores: Sequence[Score]) -> str:
    kinds = sorted({score.headline for score in scores})
    part = "" if all(score.complete for score in scores) else f", {plural(scores[0].num_settings, 'setting')}"
    return f"MAD accuracy ({' and '.join(kinds)}), {preset_words(scores[0])}{part}"


def _legend(figure: Any, panels: Iterable[Any], scores: Sequence[Score], columns: int) -> None:
    legend_below(figure, panels, columns, 8.5)
    if len(scores) > MOST_SHOWN:
        note = f"the best {MOST_SHOWN} of {len(scores)}"
        figure.text(0.99, 0.99, note, ha="right", va="top", fontsize=8.5, color=FAINT)
