"""The curves of a fit as PNG images: one image per panel."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hybridtron.reporting.numbers import scientific, short_number
from hybridtron.reporting.pictures import FAINT, GRID, HUES, INK, label_axes, log_ticks, new_figure, png

if TYPE_CHECKING:
    from hybridtron.laws.result import Series

OUTLIER_MARGIN = 0.6  # of the lines' range: points farther out become triangles at the edge,
OUTLIER_SHARE = 0.1  # unless they are more than this share of all points
LABELS_INSIDE = 6  # more labels than this stand beside the axes
NAMED_POINTS = 12  # more points than this go without their names
LONGEST_NAME = 34


def draw(curves: Sequence[Series]) -> dict[str, bytes]:
    """Return PNG images by file name, in the order in which the panels first appear."""
    images = {}
    for number, (title, group) in enumerate(_panels(curves).items(), start=1):
        stem = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40].strip("-")
        images[f"{number}-{stem or 'plot'}.png"] = _panel(title, group)
    return images


def describe(curves: Sequence[Series]) -> list[str]:
    """Return a sentence on each image of `draw`, for those who do not see it: its axes, and what is drawn."""
    sentences = []
    for title, group in _panels(curves).items():
        kinds: dict[str, list[str]] = {}
        for series in group:
            labels = kinds.setdefault({"line": "lines"}.get(series.kind, series.kind), [])
            if series.label not in labels:
                labels.append(series.label)
        drawn = [f"{kind}: {', '.join(labels)}" if any(labels) else kind for kind, labels in kinds.items()]
        sentences.append("; ".join([f"{title}: {group[0].y_label} against {group[0].x_label}", *drawn]))
    return sentences


def _panels(curves: Sequence[Series]) -> dict[str, list[Series]]:
    panels: dict[str, list[Series]] = {}
    for series in curves:
        panels.setdefault(series.panel, []).append(series)
    return panels


def _panel(title: str, group: list[Series]) -> bytes:
    labels = list(dict.fromkeys(series.label for series in group))
    colours = _colours(labels)
    wide = len(labels) > LABELS_INSIDE
    figure = new_figure(8.4 if wide else 7.2, 4.5)
    axes = figure.subplots()
    shown: set[str] = set()
    bounds = bounds_of_lines(group)
    for series in group:
        label = _mathematical(series.label) if series.label and series.label not in shown else None
        shown.add(series.label)
        _draw_series(axes, series, colours[series.label], label, bounds)
    notes = [series.note for series in group if series.note]
    if bounds:
        axes.set_ylim(bounds)
        beyond = sum(int(np.sum((s.y < bounds[0]) | (s.y > bounds[1]))) for s in group if s.kind == "points")
        notes.append(f"triangles: {beyond} point{'s' if beyond > 1 else ''} beyond the axis")
    if notes:
        axes.set_title("; ".join(notes), loc="right", fontsize=8.5, color=FAINT, pad=10)
    _label_axes(axes, title, group)
    if len([label for label in labels if label]) > 1 or (labels and labels[0]):
        place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if wide else {"loc": "best"}
        axes.legend(**place, frameon=not wide, framealpha=0.9, edgecolor=GRID, fontsize=8.5, labelcolor=INK)
    return png(figure)


def _colours(labels: list[str]) -> dict[str, Any]:
    """Return hues for a few labels; an ordered scale for many, or for steps of one quantity such as C = 6e18."""
    steps = len(labels) > 3 and len({re.sub(r"=.*", "=", label) for label in labels}) == 1
    if len(labels) <= len(HUES) and not steps:
        return dict(zip(labels, HUES, strict=False))
    from matplotlib import colormaps

    return dict(zip(labels, colormaps["viridis"](np.linspace(0, 0.9, len(labels))), strict=True))


def bounds_of_lines(group: Sequence[Series]) -> tuple[float, float] | None:
    """Return vertical bounds that keep the lines readable where outliers would flatten them; None where not needed."""
    lines = [np.asarray(series.y, float) for series in group if series.kind == "line"]
    points = [np.asarray(series.y, float) for series in group if series.kind == "points"]
    if not lines or not points:
        return None
    log = group[0].y_log
    line, point = (np.concatenate(part) for part in (lines, points))
    line, point = (np.log(part[part > 0]) if log else part[np.isfinite(part)] for part in (line, point))
    margin = OUTLIER_MARGIN * np.ptp(line)
    low, high = line.min() - margin, line.max() + margin
    outliers = np.mean((point < low) | (point > high))
    if not margin or not 0 < outliers <= OUTLIER_SHARE:
        return None
    low, high = (
        max(low, min(point.min(), line.min()) - 0.1 * margin),
        min(high, max(point.max(), line.max()) + 0.1 * margin),
    )
    return (float(np.exp(low)), float(np.exp(high))) if log else (float(low), float(high))


def _draw_series(axes: Any, series: Series, colour: Any, label: str | None, bounds: tuple[float, float] | None) -> None:
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    if series.kind == "region":
        axes.contourf(x, y, series.z, levels=[-1, 1], colors=[colour], alpha=0.15, zorder=1)
        axes.contour(x, y, series.z, levels=[1], colors=[colour], linewidths=1.4, zorder=1)
        axes.plot([], [], color=colour, linewidth=1.4, label=label)
        return
    band = None if series.low is None or series.high is None else (np.asarray(series.low), np.asarray(series.high))
    if series.kind == "line":
        order = np.argsort(x)
        axes.plot(x[order], y[order], color=colour, linewidth=1.7, label=label, zorder=3)
        if band is not None:
            axes.fill_between(x[order], band[0][order], band[1][order], color=colour, alpha=0.15, linewidth=0, zorder=1)
        return
    crowded = len(x) > 150
    if band is not None:
        below, above = np.maximum(y - band[0], 0), np.maximum(band[1] - y, 0)
        axes.errorbar(x, y, yerr=np.stack([below, above]), fmt="none", ecolor=colour, elinewidth=1, alpha=0.7, zorder=2)
    axes.scatter(
        x, y, s=10 if crowded else 24, color=[colour], alpha=0.55 if crowded else 0.85, linewidths=0, label=label,
        zorder=2,
    )  # fmt: skip
    if 0 < len(series.names) <= NAMED_POINTS:
        _name_points(axes, series)
    for beyond, edge, marker in ((y > bounds[1], bounds[1], "^"), (y < bounds[0], bounds[0], "v")) if bounds else ():
        axes.scatter(
            x[beyond], np.full(beyond.sum(), edge), s=30, marker=marker, color=[colour], clip_on=False, zorder=4
        )


def _name_points(axes: Any, series: Series) -> None:
    """Write each point's name on the side where the trend leaves room; near an edge towards the middle."""
    from matplotlib.patheffects import withStroke

    axes.margins(0.1)
    x, y = np.asarray(series.x, float), np.asarray(series.y, float)
    along = (x - x.min()) / (np.ptp(x) or 1)
    slope, offset = np.polyfit(along, y, 1) if np.ptp(x) else (0.0, y.mean())
    for i, name in enumerate(series.names):
        text = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
        above = y[i] >= offset + slope * along[i]
        right = along[i] < 0.3 or (along[i] < 0.7 and above == (slope < 0))
        axes.annotate(
            text, (x[i], y[i]), (6 if right else -6, 4 if above else -4), textcoords="offset points", fontsize=8,
            color=FAINT, ha="left" if right else "right", va="bottom" if above else "top", zorder=5,
            path_effects=[withStroke(linewidth=2.5, foreground="white")], parse_math=False,
        )  # fmt: skip


def _label_axes(axes: Any, title: str, group: list[Series]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    first = group[0]
    sides = ((axes.xaxis, first.x_log, "x", first.x_label), (axes.yaxis, first.y_log, "y", first.y_label))
    for axis, log, name, label in sides:
        if log:
            words = scientific if "FLOP" in label else short_number
            axes.set(**{f"{name}scale": "log"})
            ticks = log_ticks(*axis.get_view_interval())
            if ticks:
                axis.set_ticks(ticks)
                axis.set_ticks([], minor=True)
            axis.set_major_formatter(FuncFormatter(lambda value, _, words=words: words(value)))
            axis.set_minor_formatter(NullFormatter())
    label_axes(axes, title[:1].upper() + title[1:], _mathematical(first.x_label), _mathematical(first.y_label))


def _mathematical(text: str) -> str:
    """Return text with its exponents raised: C^0.518."""
    return re.sub(r"(\w+)\^(-?\w+(?:\.\d+)?)", r"$\\mathdefault{\1^{\2}}$", text)
