"""Compute budgets: which rows were trained with equal FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Settings

FEWEST = 4  # rows of a parabola: three coefficients and one degree of freedom
SAME_BUDGET = 0.02  # values closer than this, relative, are one budget
WIDEST_BUDGET = 0.4  # logarithm of the widest span of values that are still taken as one budget
SEPARATION = 2.0  # budgets wider than SAME_BUDGET lie at least so many of their widths apart
BUDGET_TOLERANCE = (SAME_BUDGET, "rows whose FLOPs lie within this share of a budget are of it")


def split_budgets(flops: Array) -> list[tuple[float, NDArray[np.intp]]]:
    """Split FLOPs into budgets in rising order with their rows, each named by the median of its values.

    Values within 2 % are one budget. Counted FLOPs scatter more about their nominal budgets: where 2 % leaves most rows
    without company, the smallest gap is taken that parts the values into narrow clusters far from each other, if there
    is one.
    """
    order = np.argsort(flops, kind="stable")
    logs = np.log(flops[order])
    gaps = np.diff(logs)
    nominal = np.flatnonzero(gaps > SAME_BUDGET) + 1
    breaks = nominal
    if not _enough_rows(np.split(order, nominal)):
        for gap in np.unique(gaps[(gaps > SAME_BUDGET) & (gaps < WIDEST_BUDGET)]):
            wider = np.flatnonzero(gaps > gap) + 1
            width = max(float(np.ptp(part)) for part in np.split(logs, wider))
            apart = len(wider) > 0 and gaps[wider - 1].min() >= SEPARATION * width
            if apart and width <= WIDEST_BUDGET and _enough_rows(np.split(order, wider)):
                breaks = wider
                break
    return [(float(np.median(flops[rows])), rows) for rows in np.split(order, breaks)]


def gather_budgets(runs: Runs, settings: Settings) -> Runs:
    """Give the rows of each budget its middle FLOPs, where option `budget_tolerance` says how far budgets reach.

    Each budget is the span of a factor (1 + tolerance)^2 that holds most of the rows that the budgets before it have
    left. Raises UserError for a tolerance below 2 %, within which values always are one budget, or of 1 and more.
    """
    tolerance = float(settings.options.get("budget_tolerance", SAME_BUDGET))
    if not SAME_BUDGET <= tolerance < 1:
        raise UserError(f"budget_tolerance = {tolerance:g}: expected a share from {SAME_BUDGET:g} to below 1")
    if tolerance == SAME_BUDGET:
        return runs
    flops = runs["flops"].copy()
    left = np.argsort(flops, kind="stable")
    while len(left):
        logs = np.log(runs["flops"][left])
        ends = np.searchsorted(logs, logs + 2 * np.log1p(tolerance), side="right")
        first = int(np.argmax(ends - np.arange(len(left))))
        rows = left[first : ends[first]]
        flops[rows] = np.sqrt(flops[rows[0]] * flops[rows[-1]])
        left = np.delete(left, slice(first, ends[first]))
    return runs.with_column("flops", flops)


def _enough_rows(parts: Sequence[NDArray[np.intp]]) -> bool:
    """Return whether nine rows in ten share their budget with enough others for a parabola."""
    sizes = np.array([len(part) for part in parts])
    return bool(sizes[sizes >= FEWEST].sum() >= 0.9 * sizes.sum())


def budget_warnings(flops: Array) -> list[str]:
    """Warn of FLOPs that do not look like those of compute budgets, as questions."""
    budgets = split_budgets(flops)
    alone = sum(len(rows) for _, rows in budgets if len(rows) < FEWEST)
    if alone > 0.25 * len(flops):
        return [
            f"budgets: {alone} of {len(flops)} rows lie in budgets of fewer than {FEWEST} runs (gather FLOPs that lie "
            "closer than a share by --budget-tolerance 0.1, or choose their column by --flops-column COL); does column "
            "flops hold the nominal budget of each run?"
        ]
    widest, rows = max(budgets, key=lambda budget: float(np.ptp(np.log(flops[budget[1]]))))
    spread = float(flops[rows].max() / flops[rows].min() - 1)
    if spread <= 2 * SAME_BUDGET:
        return []
    return [
        f"budgets: FLOPs that differ by up to {100 * spread:.0f} % are taken as one budget (C = {widest:.4g}), and "
        "their losses as measured at equal compute"
    ]
