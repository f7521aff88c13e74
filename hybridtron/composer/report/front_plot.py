"""The Pareto front of a search: score against each cost, and each pair of costs."""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from hybridtron.composer.report.canvas import SMALL, WIDTH, plain_numbers, quantity
from hybridtron.composer.report.outcome import Outcome
from hybridtron.reporting.numbers import short_number
from hybridtron.reporting.pictures import FAINT, HUES, INK, label_axes, legend_below, new_figure, png

LABEL_LETTERS = 26  # longer patterns are numbers
COLUMNS = 2  # panels side by side
LONG = 1e4  # numbers from which ticks are shortened


class Axis(NamedTuple):
    """One objective of all evaluations."""

    label: str
    values: np.ndarray
    errors: np.ndarray | None = None


def draw_front(outcome: Outcome) -> bytes:
    """Draw a panel for each pair of objectives: costs to the left and, of two costs, down are better."""
    assert outcome.front is not None
    seen, costs = outcome.observations, outcome.search.objectives
    several = len(costs) > 1
    errors = np.array([o.error for o in seen]) if len(outcome.search.config.seeds) > 1 else None
    score = Axis(quantity(outcome), np.array([o.score for o in seen]), errors)
    axes = [Axis(c.heading if several else c.label, np.array([c(o.pattern) for o in seen])) for c in costs]
    pairs = [(axis, score) for axis in axes] + list(combinations(axes, 2))
    rows = -(-len(pairs) // COLUMNS)
    figure = new_figure(WIDTH, 3.6 * rows + 0.4 if several else 5.0)
    panels = list(np.ravel(figure.subplots(rows, COLUMNS) if several else figure.subplots()))
    for panel, (x, y) in zip(panels, pairs, strict=False):
        _draw_pair(panel, x, y, np.array(outcome.front), with_steps=not several)
        label_axes(panel, f"{'Score' if y is score else 'Cost'} against cost", x.label, y.label)
    for panel in panels[len(pairs) :]:
        panel.remove()
    legend_below(figure, panels[: len(pairs)], 4, SMALL)
    texts = [outcome.short(seen[i].pattern) for i in outcome.front]
    if several or max(map(len, texts)) > LABEL_LETTERS:
        texts = [str(number) for number in range(1, len(texts) + 1)]
    figure.draw_without_rendering()  # places the panels
    for panel, (x, y) in zip(panels, pairs, strict=False):
        _label_front(panel, texts, x.values[outcome.front], y.values[outcome.front])
    return png(figure)


def _draw_pair(panel: Any, x: Axis, y: Axis, front: np.ndarray, with_steps: bool) -> None:
    """Draw one objective against another, the front filled; steps join its points where there are two objectives."""
    from matplotlib.ticker import FuncFormatter

    rest = np.setdiff1d(np.arange(len(x.values)), front)
    if y.errors is not None:
        for some, colour in ((rest, FAINT), (front, HUES[1])):
            look: dict[str, Any] = {"fmt": "none", "ecolor": colour, "elinewidth": 1, "alpha": 0.6, "zorder": 1}
            panel.errorbar(x.values[some], y.values[some], yerr=y.errors[some], **look)
    if len(rest):
        look = {"s": 30, "facecolors": "white", "edgecolors": FAINT, "label": "dominated", "zorder": 2}
        panel.scatter(x.values[rest], y.values[rest], **look)
    if with_steps:
        panel.step(x.values[front], y.values[front], where="post", color=HUES[1], linewidth=1.5, zorder=3)
    look = {"s": 44, "color": HUES[1], "linewidths": 0, "label": "Pareto front", "zorder": 4}
    panel.scatter(x.values[front], y.values[front], **look)
    panel.margins(x=0.12, y=0.12)
    for axis in (panel.xaxis, panel.yaxis):
        plain_numbers(axis)
        if axis is panel.xaxis or panel.get_ylim()[1] >= LONG:
            axis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _label_front(axes: Any, texts: list[str], costs: np.ndarray, scores: np.ndarray) -> None:
    """Write patterns, or their numbers in the page's table, to the upper left of their points, where no other can be.

    From the last down; a label that would cover another one is left out.
    """
    taken: list[Any] = []
    for text, x, y in reversed(list(zip(texts, costs, scores, strict=True))):
        label = axes.annotate(
            text, (x, y), xytext=(-6, 4), textcoords="offset points", ha="right", fontsize=SMALL, color=INK, zorder=5
        )
        box = label.get_window_extent()
        if any(box.overlaps(other) for other in taken):
            label.remove()
        else:
            taken.append(box)
