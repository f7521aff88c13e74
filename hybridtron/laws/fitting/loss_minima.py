"""Minima of local parabolas: where along x each compute budget has its lowest loss, and the power law through them.

For each budget the loss is fitted by a parabola in log x over the rows within a factor `window` of its minimum
(Hoffmann et al. 2022, 2203.15556, approach 2, made local). Minima at the edge of the data are no minima and are
dropped by name. Noise is resampled at the runs by a wild bootstrap (Wu 1986; multipliers on residuals divided by the
root of one minus the leverage), because resampling a handful of sizes would often leave no parabola to fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize import Array

FEWEST = 4  # rows of a parabola: three coefficients and one degree of freedom
SAME_BUDGET = 0.02  # values closer than this, relative, are one budget
WIDEST_BUDGET = 0.4  # logarithm of the widest span of values that are still taken as one budget
APART = 2.0  # budgets wider than SAME_BUDGET lie at least so many of their widths apart


@dataclass(frozen=True)
class Valley:
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
        return self.reason is None


def split_budgets(flops: Array) -> list[tuple[float, NDArray[np.intp]]]:
    """Budgets in rising order with their rows, each named by the median of its values.

    Values within 2 % are one budget. Counted FLOPs scatter more about their nominal budgets: where 2 % leaves most rows
    without company, the smallest gap is taken that parts the values into narrow clusters far from each other, if there
    is one.
    """
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    gaps = np.diff(logs)
    nominal = np.flatnonzero(gaps > SAME_BUDGET) + 1
    breaks = nominal
    if not _crowded(np.split(order, nominal)):
        for gap in np.unique(gaps[(gaps > SAME_BUDGET) & (gaps < WIDEST_BUDGET)]):
            wider = np.flatnonzero(gaps > gap) + 1
            width = max(float(np.ptp(part)) for part in np.split(logs, wider))
            apart = len(wider) > 0 and gaps[wider - 1].min() >= APART * width
            if apart and width <= WIDEST_BUDGET and _crowded(np.split(order, wider)):
                breaks = wider
                break
    return [(float(np.median(flops[rows])), rows) for rows in np.split(order, breaks)]


def _crowded(parts: Sequence[NDArray[np.intp]]) -> bool:
    """Whether nine rows in ten share their budget with enough others for a parabola."""
    sizes = np.array([len(part) for part in parts])
    return bool(sizes[sizes >= FEWEST].sum() >= 0.9 * sizes.sum())


def budget_warnings(flops: Array) -> list[str]:
    """Warnings that ask whether the FLOPs are those of compute budgets."""
    budgets = split_budgets(flops)
    alone = sum(len(rows) for _, rows in budgets if len(rows) < FEWEST)
    if alone > 0.25 * len(flops):
        return [
            f"budgets: {alone} of {len(flops)} rows lie in budgets of fewer than {FEWEST} runs; does column flops hold "
            "the nominal budget of each run?"
        ]
    widest, rows = max(budgets, key=lambda budget: float(np.ptp(np.log(flops[budget[1]]))))
    spread = float(flops[rows].max() / flops[rows].min() - 1)
    if spread <= 2 * SAME_BUDGET:
        return []
    return [
        f"budgets: FLOPs that differ by up to {100 * spread:.0f} % are taken as one budget (C = {widest:.4g}), and "
        "their losses as measured at equal compute"
    ]


def find_valley(budget: float, x: Array, loss: Array, rows: NDArray[np.intp], window: float) -> Valley:
    """The minimum of one budget; x and loss are whole columns, `rows` the budget's."""
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
    return Valley(
        budget, float(np.exp(vertex)), least, inside, coefficients, middle, residual, leverage, reason
    )  # fmt: skip


def _why_dropped(log_x: Array, loss: Array, vertex: float, coefficients: Array, used: int) -> str | None:
    sizes = np.unique(log_x)
    if used < FEWEST or len(sizes) < 3:
        return f"few points: {len(log_x)} rows of {len(sizes)} sizes"
    if not coefficients[2] > 0:
        return "edge minimum: the loss has no minimum inside the data"
    if not sizes[0] < vertex < sizes[-1]:
        side = "smallest" if vertex <= sizes[0] else "largest"
        return f"edge minimum: the minimum lies beyond the {side} size"
    lowest = log_x[np.argmin(loss)]
    if (lowest == sizes[0] and vertex < (sizes[0] + sizes[1]) / 2) or (
        lowest == sizes[-1] and vertex > (sizes[-1] + sizes[-2]) / 2
    ):
        return "edge minimum: the lowest loss is at the edge of the data"
    return None


def _design(x: Array, centre: float) -> Array:
    u = np.log(x) - centre
    return np.stack([np.ones_like(u), u, u**2], axis=1)


def find_valleys(runs: Runs, column: str, window: float) -> list[Valley]:
    """One valley for each budget of the column `flops`, in rising order."""
    return [
        find_valley(budget, runs[column], runs["loss"], rows, window)
        for budget, rows in split_budgets(runs["flops"])
    ]  # fmt: skip


def line(log_c: Array, log_x: Array) -> tuple[Array, Array]:
    """Least-squares exponent and log factor of x = k C^a; log_c [K], log_x [..., K] -> each [...]."""
    centred = log_c - log_c.mean()
    exponent = log_x @ centred / (centred @ centred)
    return exponent, log_x.mean(axis=-1) - exponent * log_c.mean()


def resample_valleys(runs: Runs, column: str, valleys: Sequence[Valley], multipliers: Array) -> tuple[Array, Array]:
    """log x and loss at the minima of resampled noise; multipliers [count, n] of the rows -> each [count, K].

    A replicate whose parabola of a budget has no minimum inside the data has nan there.
    """
    positions, losses = [], []
    for valley in valleys:
        x = runs[column]
        design = _design(x[valley.rows], valley.centre)
        noise = valley.residual / np.sqrt(np.maximum(1 - valley.leverage, 0.05))
        drawn = (design @ valley.coefficients) + multipliers[:, valley.rows] * noise
        c = drawn @ np.linalg.pinv(design).T  # [count, 3]
        with np.errstate(all="ignore"):
            vertex = valley.centre - c[:, 1] / (2 * c[:, 2])
            least = c[:, 0] - c[:, 1] ** 2 / (4 * c[:, 2])
        bounds = np.log(x[valley.rows])
        slack = 0.5 * (bounds.max() - bounds.min())
        good = (c[:, 2] > 0) & (vertex > bounds.min() - slack) & (vertex < bounds.max() + slack)
        positions.append(np.where(good, vertex, np.nan))
        losses.append(np.where(good, least, np.nan))
    return np.stack(positions, axis=1), np.stack(losses, axis=1)


def line_with_gaps(log_c: Array, log_x: Array) -> tuple[Array, Array]:
    """`line` for replicates [count, K] where some minima are missing (nan); nan where fewer than two are left."""
    there = np.isfinite(log_x)
    filled = np.where(there, log_x, 0.0)
    count = there.sum(axis=1)
    with np.errstate(all="ignore"):
        mean_c = (there * log_c).sum(axis=1) / count
        mean_x = filled.sum(axis=1) / count
        centred = np.where(there, log_c - mean_c[:, None], 0.0)
        exponent = (centred * filled).sum(axis=1) / (centred**2).sum(axis=1)
        factor = mean_x - exponent * mean_c
    return np.where(count >= 2, exponent, np.nan), np.where(count >= 2, factor, np.nan)
