"""Loss curves of several runs in one picture for each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridtron.monitoring.compare.comparison import BITS, Comparison
from hybridtron.monitoring.compare.run import AXES, ComparedRun
from hybridtron.reporting.numbers import short_number
from hybridtron.reporting.pictures import FAINT, HUES, label_axes, new_figure, png

WIDTH, HEIGHT, ROW = 9.0, 4.6, 0.26  # inches: of a picture, and of a row of its legend
BEGINNING = 0.05  # of the axis, whose losses may lie above the frame: they fall from far above there
STYLES: tuple[Any, ...] = ("-", "--", "-.", ":")


def draw(comparison: Comparison) -> dict[str, bytes]:
    """Return a picture for each axis of which something is known, by the axis."""
    return {axis: png(figure) for axis in AXES if (figure := _figure(comparison, axis))}


def _figure(comparison: Comparison, axis: str) -> Any:
    """Draw smoothed training losses as lines and held-out losses as points; None where no run has any."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    figure = new_figure(WIDTH, HEIGHT + ROW * -(-len(comparison.runs) // 3))
    panel = figure.subplots()
    drawn, curves = [], []
    for number, run in enumerate(comparison.runs):
        colour, style = HUES[number % len(HUES)], STYLES[number // len(HUES) % len(STYLES)]
        scale = comparison.scale(run)
        lines = [_points(curve, axis, scale) for curve in (run.smoothed, run.held_out)]
        (x, y), (points_x, points_y) = lines
        if not len(x) and not len(points_x):
            continue
        panel.plot(x, y, style, color=colour, linewidth=1.5, zorder=2)
        panel.scatter(points_x, points_y, s=26, color=colour, edgecolors="white", linewidths=0.6, zorder=3)
        drawn.append(Line2D([], [], linestyle=style, color=colour, marker="o", markersize=4.5, label=_label(run)))
        curves += [line for line in lines if len(line[0])]
    if not drawn:
        return None
    panel.set_ylim(_frame(curves))
    panel.margins(x=0.02)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))
    panel.get_yaxis().get_major_formatter().set_useOffset(False)
    measure = "bits per byte" if comparison.measure == BITS else "loss (nats per token)"
    label_axes(panel, f"Loss by {AXES[axis]}", "hours of training steps" if axis == "hours" else AXES[axis], measure)
    panel.set_title("line: training, smoothed; points: held out", loc="right", fontsize=8.5, color=FAINT, pad=10)
    _legend(figure, drawn)
    return figure


def _frame(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Return the ends of the axis of losses: of all after the beginning, and none above those at the first step."""
    begin = BEGINNING * max(x.max() for x, _ in curves)
    late = np.concatenate([y[x >= begin] for x, y in curves])
    top = min(late.max(), max(y[np.argmin(x)] for x, y in curves))
    low = min(late.min(), top)
    margin = 0.06 * (top - low or 0.1)
    return low - margin, top + margin


def _points(curve: dict[str, list[float]], axis: str, scale: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a curve that are known, by the measure."""
    x, y = np.asarray(curve[axis], float), np.asarray(curve["loss"], float) * (np.nan if scale is None else scale)
    known = np.isfinite(x) & np.isfinite(y)
    return x[known], y[known]


def _label(run: ComparedRun) -> str:
    return run.name if run.state == "finished" else f"{run.name} ({run.state})"


def _legend(figure: Any, handles: Sequence[Any]) -> None:
    """Draw the names of the runs below the panel, in as many columns as their length allows."""
    longest = max(len(handle.get_label()) for handle in handles)
    columns = max(1, min(len(handles), 3, int(100 // (longest + 8))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
