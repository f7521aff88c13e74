"""The power law through the loss minima of compute budgets along one column, and its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import budget_warnings
from hybridtron.laws.fitting.minima.delta_method import line_spread
from hybridtron.laws.fitting.minima.loss_minima import (
    LossMinimum,
    dropped_budgets,
    find_loss_minima,
    resample_loss_minima,
)
from hybridtron.laws.fitting.minima.power_law import PowerLaw, fit_line
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.law import Settings
from hybridtron.laws.result import Series
from hybridtron.reporting.numbers import plural

FEWEST_BUDGETS = 3
FEWEST_FREEDOM = 5


@dataclass(frozen=True)
class Axis:
    """One power law of a parabola law: x_opt = factor * C^exponent, x_opt where along `column` the loss is least."""

    column: str
    exponent: str  # public name
    factor: str  # public name
    quantity: str  # x_opt in words


@dataclass(frozen=True)
class MinimaFit:
    """The power law through the minima of the budgets along one column."""

    power: PowerLaw
    minima: list[LossMinimum]
    positions: Array | None  # resampled log x of the kept minima, [count, K]
    scatter: dict[str, float] | None
    n_points: int
    n_groups: int
    warnings: list[str]

    @cached_property
    def kept(self) -> list[LossMinimum]:
        """Minima that the power law goes through."""
        return [minimum for minimum in self.minima if minimum.kept]

    @property
    def objective(self) -> float:
        """Squared residuals about the parabolas, summed over the rows of the kept minima."""
        return float(sum((minimum.residual**2).sum() for minimum in self.kept))

    def curves(self, panel: str) -> list[Series]:
        """Return the minima with error bars, and the line with its band."""
        axes: dict[str, Any] = {"x_label": "training FLOPs", "y_label": panel, "y_log": True}
        low = high = None
        if self.positions is not None:
            low, high = np.exp(np.nanquantile(self.positions, [0.025, 0.975], axis=0))
        points = Series(panel, "minima", "points", self.power.x, self.power.y, low=low, high=high, **axes)
        return [points, self.power.line(panel, "C", 10, axes)]


def fit_minima(runs: Runs, settings: Settings, axis: Axis, window: float) -> MinimaFit:
    """Find the minimum of each budget along the axis, fit the line through the kept ones, with its interval.

    Raises UserError when fewer than two budgets have a usable minimum.
    """
    column = axis.column
    found = find_loss_minima(runs, column, window)
    kept = [minimum for minimum in found if minimum.kept]
    if len(kept) < 2:
        raise UserError(_refusal(runs.source, found, len(kept)))
    x, y = (np.array([getattr(minimum, name) for minimum in kept]) for name in ("budget", "x"))
    exponent, log_factor = (float(value) for value in fit_line(np.log(x), np.log(y)))
    along = {"n_params": "minimum in N", "tokens": "minimum in D"}.get(column, column)
    warnings = budget_warnings(runs["flops"]) + dropped_budgets(found, along)
    rows = np.unique(np.concatenate([minimum.rows for minimum in kept]))
    labels = bootstrap.group_labels(runs, settings.group)
    freedom = sum(len(minimum.rows) - 3 for minimum in kept)
    if settings.group is not None:
        freedom = min(freedom, len(np.unique(labels[rows])) - 3)
    spread = positions = scatter = None
    widening = 1.0
    if len(kept) < FEWEST_BUDGETS:
        few = f"{len(kept)} budgets determine a line exactly; at least {FEWEST_BUDGETS} are needed"
        warnings.append(f"few points: no intervals, {few}")
    elif reason := _too_few_rows(len(rows), freedom):
        warnings.append(reason)
    elif settings.bootstrap:
        rng = np.random.default_rng([settings.seed, 4])
        multipliers = bootstrap.signs(rng, settings.bootstrap, int(labels.max()) + 1)[:, labels]
        positions = resample_loss_minima(runs, column, kept, multipliers)
        spread = line_spread(runs, column, kept, labels, freedom, settings.group is not None)
        widening, scatter = _scatter(np.log(x), np.log(y), positions)
        if widening > 1:
            warnings.append(
                f"scatter: the minima ({along}) lie {widening:.2g}x farther from the line than the noise within "
                "budgets explains; intervals are widened by that factor"
            )
    power = PowerLaw((axis.exponent, axis.factor), x, y, exponent, math.exp(log_factor), spread, widening)
    return MinimaFit(power, found, positions, scatter, len(rows), len(np.unique(labels[rows])), warnings)


def _refusal(source: str, found: list[LossMinimum], kept: int) -> str:
    budgets = "one budget only" if len(found) == 1 else f"{len(found)} budgets, {kept} with a usable minimum"
    dropped = [f"C = {one.budget:.3g}: {one.reason}" for one in found if one.reason]
    reasons = "; ".join(dropped[:3]) + (f"; and {len(dropped) - 3} more" if len(dropped) > 3 else "")
    text = f"{source}: {budgets}; expected at least two budgets with a minimum inside their data"
    return text + (f" ({reasons})" if reasons else "")


def _too_few_rows(rows: int, freedom: int) -> str | None:
    """Return why there are no intervals, or None."""
    if freedom >= FEWEST_FREEDOM:
        return None
    left = plural(max(freedom, 0), "degree of freedom", "degrees of freedom")
    return (
        f"few points: no intervals, {plural(rows, 'row')} for the parabolas: {left}; "
        f"at least {FEWEST_FREEDOM} are needed"
    )


def _scatter(log_c: Array, log_x: Array, positions: Array) -> tuple[float, dict[str, float]]:
    """Return how much farther minima lie from their line than resampling predicts; 1 unless significant at 1 %."""

    def about_line(values: Array) -> Array:
        exponent, log_factor = fit_line(log_c, values)
        return ((values - exponent[..., None] * log_c - log_factor[..., None]) ** 2).sum(axis=-1)

    noise = positions - np.nanmedian(positions, axis=0)
    expected = about_line(noise[np.isfinite(noise).all(axis=1)])
    observed = float(about_line(log_x[None])[0])
    if len(expected) < 100:
        return 1.0, {}
    ratio = math.sqrt(observed / max(float(expected.mean()), 1e-300))
    p = float((1 + (expected >= observed).sum()) / (1 + len(expected)))
    return (ratio if p < 0.01 and ratio > 1 else 1.0), {"ratio": ratio, "p": p}
