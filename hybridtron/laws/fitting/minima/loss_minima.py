"""Minima of local parabolas: where along x each compute budget has its lowest loss.

For each budget the loss is fitted by a parabola in log x over the rows within a factor `window` of its minimum
(Hoffmann et al. 2022, 2203.15556, approach 2, made local). Minima at the edge of the data are no minima and are
dropped by name. Intervals of the line through them are of the delta method. How far minima may lie from their line
by chance is resampled by a wild bootstrap (Wu 1986; multipliers on residuals divided by the root of one minus the
leverage), because resampling a handful of sizes would often leave no parabola to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import FEWEST, split_budgets
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Settings
from hybridtron.laws.result import Series
from hybridtron.reporting.numbers import plural

WINDOW = "rows within this factor of the minimum are fitted; inf takes all"


@dataclass(frozen=True)
class LossMinimum:
    """One budget's parabola; `reason` says why it is left out, or is None."""

    budget: float
    x: float  # at the minimum; nan when there is none
    loss: float  # at the minimum
    rows: NDArray[np.intp]  # rows of the runs inside the window
    coefficients: Array  # of 1, u, u^2 with u = log(x / centre), [3]
    centre: float  # log x of the middle of the window
    residual: Array  # [rows]
    leverage: Array  # [rows]
    reason: str | None

    @property
    def kept(self) -> bool:
        """Return whether the minimum can be used."""
        return self.reason is None

    @property
    def noise(self) -> Array:
        """Residuals brought to the spread of the noise by their leverage."""
        return self.residual / np.sqrt(np.maximum(1 - self.leverage, 0.05))


def find_loss_minimum(budget: float, x: Array, loss: Array, rows: NDArray[np.intp], window: float) -> LossMinimum:
    """Find the minimum of one budget; x and loss are whole columns, `rows` the budget's."""
    log_x = np.log(x[rows])
    centre = float(log_x[np.argmin(loss[rows])])
    inside = rows
    coefficients = np.full(3, np.nan)
    vertex = np.nan
    for _ in range(20):
        distance = np.abs(log_x - centre)
        reach = max(np.log(window), float(np.sort(distance)[min(FEWEST, len(rows)) - 1])) + 1e-9
        chosen = rows[distance <= reach]
        if len(np.unique(x[chosen])) < 3:
            break
        same = np.array_equal(chosen, inside)
        inside = chosen
        middle = float(np.log(x[inside]).mean())
        coefficients = np.linalg.lstsq(_design(x[inside], middle), loss[inside], rcond=None)[0]
        if coefficients[2] <= 0:
            vertex = np.nan
            break
        vertex = middle - coefficients[1] / (2 * coefficients[2])
        if same or not log_x.min() <= vertex <= log_x.max():
            break
        centre = vertex
    middle = float(np.log(x[inside]).mean())
    design = _design(x[inside], middle)
    residual = loss[inside] - design @ coefficients
    leverage = np.einsum("ij,ji->i", design, np.linalg.pinv(design))
    least = float(coefficients[0] - coefficients[1] ** 2 / (4 * coefficients[2])) if coefficients[2] > 0 else np.nan
    reason = _why_dropped(log_x, loss[rows], vertex, coefficients, len(inside))
    return LossMinimum(
        budget, float(np.exp(vertex)), least, inside, coefficients, middle, residual, leverage, reason
    )  # fmt: skip


def find_loss_minima(runs: Runs, column: str, window: float) -> list[LossMinimum]:
    """Find the minimum of each budget along a column, in rising order of the budgets."""
    budgets = split_budgets(runs["flops"])
    return [find_loss_minimum(budget, runs[column], runs["loss"], rows, window) for budget, rows in budgets]


def minimum_interval(minimum: LossMinimum, x: Array) -> list[float] | None:
    """Return the 95 % interval of x at a minimum by Fieller's theorem (1954), exact for normal noise.

    Returns None where it is unbounded: the rows do not show that the parabola has a minimum.
    """
    design = _design(x[minimum.rows], minimum.centre)
    freedom = len(design) - 3
    covariance = np.linalg.inv(design.T @ design) * (minimum.residual**2).sum() / freedom
    _, slope, bend = minimum.coefficients
    far = float(stdtrit(freedom, 0.975)) ** 2 * covariance
    # the u where the derivative slope + 2 bend u does not differ from zero: a u^2 + b u + c <= 0
    a, b, c = 4 * (bend**2 - far[2, 2]), 4 * (slope * bend - far[1, 2]), slope**2 - far[1, 1]
    return np.exp(minimum.centre + np.sort(np.roots([a, b, c]))).tolist() if a > 0 else None


def minimum_derivatives(minimum: LossMinimum, x: Array) -> Array:
    """Return the derivatives of log x at the minimum by the losses of its rows, [rows]; x is the whole column."""
    _, slope, bend = minimum.coefficients
    by_coefficient = np.array([0.0, -1 / (2 * bend), slope / (2 * bend**2)])
    return np.asarray(by_coefficient @ np.linalg.pinv(_design(x[minimum.rows], minimum.centre)))


def _why_dropped(log_x: Array, loss: Array, vertex: float, coefficients: Array, used: int) -> str | None:
    sizes = np.unique(log_x)
    if used < FEWEST or len(sizes) < 3:
        return f"few points: {plural(len(log_x), 'row')} of {plural(len(sizes), 'different value')}"
    if not coefficients[2] > 0:
        return "edge minimum: the loss has no minimum inside the data"
    if not sizes[0] < vertex < sizes[-1]:
        side = "smallest" if vertex <= sizes[0] else "largest"
        return f"edge minimum: the minimum lies beyond the {side} value tried"
    lowest = log_x[np.argmin(loss)]
    if (lowest == sizes[0] and vertex < (sizes[0] + sizes[1]) / 2) or (
        lowest == sizes[-1] and vertex > (sizes[-1] + sizes[-2]) / 2
    ):
        return "edge minimum: the lowest loss is at the edge of the data"
    return None


def _design(x: Array, centre: float) -> Array:
    u = np.log(x) - centre
    return np.stack([np.ones_like(u), u, u**2], axis=1)


def resample_loss_minima(runs: Runs, column: str, minima: Sequence[LossMinimum], multipliers: Array) -> Array:
    """Return log x at the minima of resampled noise; multipliers [count, n] of the rows -> [count, K].

    A replicate whose parabola of a budget has no minimum inside the data has nan there.
    """
    positions = []
    for minimum in minima:
        x = runs[column][minimum.rows]
        design = _design(x, minimum.centre)
        drawn = design @ minimum.coefficients + multipliers[:, minimum.rows] * minimum.noise
        c = drawn @ np.linalg.pinv(design).T  # [count, 3]
        with np.errstate(all="ignore"):
            vertex = minimum.centre - c[:, 1] / (2 * c[:, 2])
        low, high = np.log(x.min()), np.log(x.max())
        slack = 0.5 * (high - low)
        good = (c[:, 2] > 0) & (vertex > low - slack) & (vertex < high + slack)
        positions.append(np.where(good, vertex, np.nan))
    return np.stack(positions, axis=1)


def parabola_curves(runs: Runs, column: str, minima: list[LossMinimum], panel: str, x_label: str) -> list[Series]:
    """Return the rows of every budget and its parabola over the rows that were fitted."""
    axes: dict[str, Any] = {"x_label": x_label, "y_label": "loss (nats per token)"}
    budgets = [rows for _, rows in split_budgets(runs["flops"])]
    curves = []
    if small := [rows for rows in budgets if len(rows) < FEWEST]:
        rest = np.concatenate(small)
        curves.append(
            Series(panel, "budgets of too few runs", "points", runs[column][rest], runs["loss"][rest], **axes)
        )
    for minimum, rows in zip(minima, budgets, strict=True):
        if len(rows) < FEWEST:
            continue
        label = f"C = {minimum.budget:.4g}" + ("" if minimum.kept else " (dropped)")
        curves.append(Series(panel, label, "points", runs[column][rows], runs["loss"][rows], **axes))
        if np.isfinite(minimum.x):
            fitted = runs[column][minimum.rows]
            x = np.geomspace(fitted.min(), fitted.max(), 60)
            y = _design(x, minimum.centre) @ minimum.coefficients
            curves.append(Series(panel, label, "line", x, y, **axes))
    return curves


def chosen_window(settings: Settings, default: float) -> float:
    """Return the window that was asked for, or the law's own; raises UserError for one that holds nothing."""
    window = float(settings.options.get("window", default))
    if not window > 1:
        raise UserError(f"window = {window:g}: expected a factor above 1")
    return window


def dropped_budgets(found: list[LossMinimum], axis: str) -> list[str]:
    """Warn of budgets that are left out and why; many that have too few runs share one warning."""
    small = [minimum for minimum in found if minimum.reason and minimum.reason.startswith("few points")]
    warnings = [f"{one.reason} (budget C = {one.budget:.4g}, dropped)" for one in small]
    if len(small) > 3:
        named = ", ".join(f"{minimum.budget:.4g}" for minimum in small[:6]) + (", ..." if len(small) > 6 else "")
        warnings = [f"few points: {len(small)} budgets of too few runs or values are dropped: C = {named}"]
    others = [minimum for minimum in found if minimum.reason and minimum not in small]
    return warnings + [f"{one.reason} (budget C = {one.budget:.4g}, {axis}, dropped)" for one in others]
