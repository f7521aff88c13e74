"""The pictures of an ablation: each axis against the held-out loss, the cells, and the ladder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hybridtron.ablations.axes import Axis
from hybridtron.ablations.compare import Comparison
from hybridtron.ablations.results import Ablation
from hybridtron.reporting.numbers import short_number
from hybridtron.reporting.pictures import FAINT, HUES, label_axes, legend_below, log_ticks, new_figure, png

WIDTH, HEIGHT = 8.0, 3.8  # inches
SMALL = 9  # text size of legends
LOG_RATIO = 4.0  # numeric levels that span more than this are drawn on a logarithmic axis
MOST_CELLS = 40  # of the picture of cells
LOSS = "held-out loss (nats per token)"


def draw(ablation: Ablation) -> dict[str, bytes]:
    """Return PNG images by file name: `axis-NAME.png` for each axis, `cells.png`, and `ladder.png` for budgets."""
    images = {}
    for axis in ablation.plan.axes:
        if any(level.loss is not None for level in ablation.axes[axis.name]) and len(axis.levels) > 1:
            images[f"axis-{axis.name}.png"] = _axis(ablation, axis)
    if sum(cell.loss is not None for cell in ablation.cells) > 1:
        images["cells.png"] = _cells(ablation)
    if any(level.budget for axis in ablation.plan.axes for level in axis.levels) and ablation.rows:
        images["ladder.png"] = _ladder(ablation)
    return images


def _axis(ablation: Ablation, axis: Axis) -> bytes:
    """Draw the mean loss of each level with its interval over seeds; pale dots are the seeds of single cells."""
    levels = ablation.axes[axis.name]
    measured = [(i, level) for i, level in enumerate(levels) if level.loss is not None]
    positions, is_log = _positions(axis)
    figure = new_figure(WIDTH, HEIGHT)
    panel = figure.subplots()
    for place, level in zip(positions, axis.levels, strict=True):
        losses = [loss for cell in ablation.compared_cells(axis, level) for loss in ablation.losses(cell).values()]
        panel.scatter([place] * len(losses), losses, s=16, color=HUES[1], linewidths=0, zorder=4)
    panel.scatter([], [], s=16, color=HUES[1], linewidths=0, label="single runs")
    x = np.array([positions[i] for i, _ in measured])
    _means(panel, x, [level for _, level in measured], "mean over seeds, 95 % interval")
    if axis.is_numeric and len(x) > 1:
        order = np.argsort(x)
        panel.plot(x[order], np.array([level.loss for _, level in measured])[order], color=HUES[0], linewidth=1.2)
    reference = positions[axis.levels.index(axis.reference)]
    panel.axvline(reference, color=FAINT, linewidth=1, linestyle=":", zorder=0, label="reference")
    _scale_x(panel, axis, positions, is_log)
    _plain_y(panel)
    label_axes(panel, f"Held-out loss by {axis.name}", axis.quantity, LOSS)
    legend_below(figure, [panel], 4, SMALL)
    return png(figure)


def _positions(axis: Axis) -> tuple[list[float], bool]:
    """Return where the levels stand, and whether on a logarithmic scale: at their values, or side by side."""
    if not axis.is_numeric:
        return [float(i) for i in range(len(axis.levels))], False
    values = [float(level.value) for level in axis.levels]
    return values, min(values) > 0 and max(values) / min(values) >= LOG_RATIO


def _scale_x(panel: Any, axis: Axis, positions: Sequence[float], is_log: bool) -> None:
    from matplotlib.ticker import FuncFormatter

    if not axis.is_numeric:
        panel.set_xticks(positions, [level.name for level in axis.levels], rotation=20 if len(positions) > 5 else 0)
        panel.set_xlim(-0.5, len(positions) - 0.5)
        return
    if is_log:
        panel.set_xscale("log")
    panel.margins(x=0.08)
    ticks = positions if len(positions) <= 8 else log_ticks(min(positions), max(positions)) if is_log else None
    if ticks is not None:
        panel.set_xticks(ticks)
        panel.set_xticks([], minor=True)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_number(value)))


def _means(panel: Any, x: np.ndarray, levels: Sequence[Comparison], label: str) -> None:
    """Draw means with intervals, as far as these are known."""
    mean = np.array([level.loss for level in levels], float)
    ends = np.array([level.interval or (np.nan, np.nan) for level in levels], float)
    reach = np.nan_to_num(np.abs(ends - mean[:, None]).T)
    look: dict[str, Any] = {"fmt": "o", "color": HUES[0], "capsize": 4, "elinewidth": 1.4, "markersize": 6, "zorder": 3}
    panel.errorbar(x, mean, yerr=reach, label=label, **look)


def _cells(ablation: Ablation) -> bytes:
    """Draw the difference of each cell from the reference with its interval, the best first."""
    compared = [cell for cell in ablation.cells if cell.difference is not None]
    compared = sorted(compared, key=lambda cell: cell.difference or 0.0)[:MOST_CELLS]
    figure = new_figure(WIDTH, 1.2 + 0.28 * max(4, len(compared)))
    panel = figure.subplots()
    y = np.arange(len(compared))
    middle = np.array([cell.difference for cell in compared], float)
    ends = np.array([cell.difference_interval or (np.nan, np.nan) for cell in compared], float).reshape(-1, 2)
    known = [cell.verdict in ("better", "worse") for cell in compared]
    for wanted, colour, label in ((True, HUES[1], "confirmed by the test"), (False, HUES[0], "not distinguishable")):
        some = np.array([found is wanted for found in known], bool)
        if some.any():
            reach = np.nan_to_num(np.abs(ends[some] - middle[some, None]).T)
            panel.errorbar(
                middle[some], y[some], xerr=reach, fmt="o", color=colour, capsize=3, markersize=5, label=label
            )
    panel.axvline(0, color=FAINT, linewidth=1, linestyle="--", zorder=0)
    panel.set_yticks(y, [cell.name for cell in compared])
    panel.set_ylim(len(compared) - 0.4, -0.6)
    label_axes(panel, "Cells beside the reference", f"difference in {LOSS} from the reference, 95 % interval", "")
    legend_below(figure, [panel], 2, SMALL)
    return png(figure)


def _ladder(ablation: Ablation) -> bytes:
    """Draw the loss of each budget against the parameters, a line for each combination of the other text axes."""
    (budget,) = (axis for axis in ablation.plan.axes if any(level.budget for level in axis.levels))
    groups: dict[tuple[str, str], dict[float, list[float]]] = {}
    families = _family_axes(ablation, budget)
    for cell in ablation.plan.cells:
        family = " ".join(cell.combination[name].name for name in families) or ablation.plan.config.name
        key = (family, cell.combination[budget.name].name)
        sizes = groups.setdefault(key, {})
        sizes.setdefault(cell.numbers["parameters"], []).extend(ablation.losses(cell).values())
    figure = new_figure(WIDTH, 4.6)
    panel = figure.subplots()
    names = list(dict.fromkeys(family for family, _ in groups))
    amounts = [level.name for level in budget.levels]
    for (family, amount), sizes in groups.items():
        points = sorted((size, np.mean(losses), losses) for size, losses in sizes.items() if losses)
        colour, mark = HUES[names.index(family) % len(HUES)], "os^Dv<>pP*"[amounts.index(amount) % 10]
        x, y = [point[0] for point in points], [point[1] for point in points]
        panel.plot(x, y, marker=mark, color=colour, linewidth=1.3, markersize=6, label=f"{family} {amount}")
        for size, _, losses in points:
            panel.scatter([size] * len(losses), losses, s=10, color=colour, alpha=0.4, linewidths=0)
    panel.set_xscale("log")
    sizes_seen = _distinct(sorted({row["n_params"] for row in ablation.rows}))
    ticks = sizes_seen if len(sizes_seen) <= 6 else log_ticks(min(sizes_seen), max(sizes_seen))
    panel.set_xticks(ticks, [short_number(float(tick)) for tick in ticks])
    panel.set_xticks([], minor=True)
    _plain_y(panel)
    label_axes(panel, f"Loss by size and budget ({budget.quantity})", "parameters", LOSS)
    legend_below(figure, [panel], 4, SMALL)
    return png(figure)


def _distinct(values: Sequence[float]) -> list[float]:
    """Return rising values without those that lie within a tenth of the one before them."""
    kept: list[float] = []
    for value in values:
        if not kept or value > 1.1 * kept[-1]:
            kept.append(value)
    return kept


def _family_axes(ablation: Ablation, budget: Axis) -> list[str]:
    """Return the axes but the budget whose levels do not only change the size: those named first, all but the last."""
    others = [axis.name for axis in ablation.plan.axes if axis.name != budget.name and len(axis.levels) > 1]
    return others[:-1]


def _plain_y(panel: Any) -> None:
    """Show the ticks of the loss without an offset."""
    panel.get_yaxis().get_major_formatter().set_useOffset(False)
    panel.margins(y=0.12)
