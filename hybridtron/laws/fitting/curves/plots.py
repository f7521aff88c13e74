"""Plots of curve laws: measured against predicted values, and the loss across a column at a few values of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import CurveFit
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.result import Series
from hybridtron.reporting.numbers import short_number

_LEVELS = (0.1, 0.5, 0.9)  # quantiles of the column that tells the lines apart
_POINTS = 80  # of a line


def measured_against_predicted(fitted: CurveFit, quantity: str, labels: Array | None = None) -> list[Series]:
    """Return the panel that every curve law has: measured values against the fitted ones, and the line of equality.

    `labels`, [n], name the points of each colour.
    """
    value = fitted.curve.problem.target + fitted.residual
    predicted = np.exp(value) if fitted.curve.log_target else value
    observed = fitted.curve.observed
    names = [] if labels is None else list(dict.fromkeys(labels.tolist()))
    groups = {name: labels == name for name in names} or {"runs": np.ones(len(observed), bool)}
    ends = np.array([min(predicted.min(), observed.min()), max(predicted.max(), observed.max())])
    axes: dict[str, Any] = {"x_label": f"predicted {quantity}", "y_label": f"measured {quantity}", "x_log": False}
    return [
        *(
            Series("measured against predicted", label, "points", predicted[rows], observed[rows], **axes)
            for label, rows in groups.items()
        ),
        Series("measured against predicted", "equal", "line", ends, ends, **axes),
    ]


def loss_across(fitted: CurveFit, runs: Runs, columns: Sequence[str], x: str, levels: str) -> list[Series]:
    """Return lines of the law across column `x`, `levels` at a few of its values and the others at their medians.

    Each run stands at its own x by the line of the nearest level, as far above it as it was measured above the law.
    """
    middle = {name: float(np.median(runs[name])) for name in columns}
    values = np.unique(np.quantile(runs[levels], _LEVELS, method="nearest"))
    log = bool((runs[x] > 0).all())
    grid = (np.geomspace if log else np.linspace)(runs[x].min(), runs[x].max(), _POINTS)
    nearest = np.abs(np.log(runs[levels][:, None] / values)).argmin(axis=1)  # [n]
    above = np.exp(-fitted.residual)  # measured over fitted, [n]
    others = [f"{name} {short_number(value)}" for name, value in middle.items() if name not in (x, levels)]
    note = "runs moved to the lines by the law" + (f" ({', '.join(others)})" if others else "")
    axes: dict[str, Any] = {"x_label": x, "y_label": "loss (nats per token)", "x_log": log}

    def at(level: float, places: Array) -> dict[str, Array]:
        return {name: np.full(len(places), size) for name, size in (middle | {levels: level}).items()} | {x: places}

    def along(line: dict[str, Array]) -> Callable[[Array], Array]:
        return lambda theta: fitted.curve.predict(theta, line)

    series = []
    for i, value in enumerate(values):
        own, line, label = runs[x][nearest == i], at(value, grid), f"{levels} = {short_number(value)}"
        points = fitted.predict(at(value, own)) * above[nearest == i]
        band = fitted.band(along(line))
        title = f"loss against {x}"
        series += [
            Series(title, label, "points", own, points, **axes, note="" if i else note),
            Series(title, label, "line", grid, fitted.predict(line), **band, **axes),
        ]
    return series
