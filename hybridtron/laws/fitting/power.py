"""The power law through the minima of compute budgets, x_opt = k C^a, with its interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Series, Settings
from hybridtron.laws.fitting import bootstrap
from hybridtron.laws.fitting import loss_minima as valleys
from hybridtron.laws.fitting.loss_minima import Valley
from hybridtron.laws.fitting.optimize import Array

FEWEST_BUDGETS = 3
FEWEST_FREEDOM = 5


@dataclass(frozen=True)
class Power:
    """x_opt = factor * C^exponent over the kept valleys; `samples` are exponent and log factor, [count, 2]."""

    exponent: float
    factor: float
    valleys: list[Valley]
    objective: float
    n_points: int
    n_groups: int
    freedom: int
    samples: Array | None
    minima: Array | None  # resampled log x of the kept valleys, [count, K]
    widening: float
    scatter: dict[str, float] | None
    warnings: list[str]

    @cached_property
    def kept(self) -> list[Valley]:
        return [valley for valley in self.valleys if valley.kept]

    @property
    def intervals(self) -> dict[str, list[float]] | None:
        """Of `exponent` and `factor`; None when refused."""
        if self.samples is None:
            return None
        low, high = self._interval(self.samples[:, 1], math.log(self.factor))
        return {
            "exponent": self._interval(self.samples[:, 0], self.exponent),
            "factor": [_exp(low), _exp(high)],
        }

    def at(self, flops: float) -> float:
        """x_opt at a budget."""
        return math.exp(math.log(self.factor) + self.exponent * math.log(flops))

    def interval_at(self, flops: float) -> list[float] | None:
        """Interval of `at`."""
        if self.samples is None:
            return None
        log_c = math.log(flops)
        low, high = self._interval(self.samples[:, 1] + self.samples[:, 0] * log_c, math.log(self.at(flops)))
        return [_exp(low), _exp(high)]

    def _interval(self, samples: Array, value: float) -> list[float]:
        low, high = bootstrap.residual_interval(samples, self.freedom)
        return [value + self.widening * (low - value), value + self.widening * (high - value)]

    def curves(self, panel: str, x_label: str, y_label: str) -> list[Series]:
        """Minima with error bars, and the line with its band."""
        budgets = np.array([valley.budget for valley in self.kept])
        minima = np.array([valley.x for valley in self.kept])
        axes: dict[str, Any] = {"x_label": x_label, "y_label": y_label, "y_log": True}
        low = high = None
        if self.minima is not None:
            low, high = np.exp(np.nanquantile(self.minima, [0.025, 0.975], axis=0))
        x = np.geomspace(budgets.min(), budgets.max() * 10, 60)
        band = [self.interval_at(float(c)) for c in x]
        line = np.array([self.at(float(c)) for c in x])
        edges = np.array(band).T if self.samples is not None else (None, None)
        return [
            Series(panel, "minima", "points", budgets, minima, low=low, high=high, **axes),
            Series(panel, f"C^{self.exponent:.3g}", "line", x, line, low=edges[0], high=edges[1], **axes),
        ]


def valley_curves(runs: Runs, column: str, found: list[Valley], panel: str, x_label: str) -> list[Series]:
    """The rows of every budget and its parabola over the rows that were fitted."""
    axes: dict[str, Any] = {"x_label": x_label, "y_label": "loss (nats per token)"}
    curves = []
    small = [rows for _, rows in valleys.split_budgets(runs["flops"]) if len(rows) < valleys.FEWEST]
    if small:
        rest = np.concatenate(small)
        curves.append(
            Series(panel, "budgets of too few runs", "points", runs[column][rest], runs["loss"][rest], **axes)
        )
    for valley, (_, rows) in zip(found, valleys.split_budgets(runs["flops"]), strict=True):
        if len(rows) < valleys.FEWEST:
            continue
        label = f"C = {valley.budget:.4g}" + ("" if valley.kept else " (dropped)")
        curves.append(Series(panel, label, "points", runs[column][rows], runs["loss"][rows], **axes))
        if np.isfinite(valley.x):
            fitted = runs[column][valley.rows]
            x = np.geomspace(fitted.min(), fitted.max(), 60)
            u = np.log(x) - valley.centre
            c = valley.coefficients
            curves.append(Series(panel, label, "line", x, c[0] + c[1] * u + c[2] * u**2, **axes))
    return curves


def fit_power(runs: Runs, settings: Settings, column: str, window: float) -> Power:
    """Valleys along `column` for each budget, the line through the kept ones, and resampled lines.

    Raises:
        UserError: when fewer than two budgets have a usable minimum.
    """
    found = valleys.find_valleys(runs, column, window)
    kept = [valley for valley in found if valley.kept]
    if len(kept) < 2:
        budgets = "one budget only" if len(found) == 1 else f"{len(found)} budgets, {len(kept)} with a usable minimum"
        dropped = [f"C = {v.budget:.3g}: {v.reason}" for v in found if v.reason]
        reasons = "; ".join(dropped[:3]) + (f"; and {len(dropped) - 3} more" if len(dropped) > 3 else "")
        raise UserError(
            f"{runs.source}: {budgets}; expected at least two budgets with a minimum inside their data"
            + (f" ({reasons})" if reasons else "")
        )
    log_c = np.log([valley.budget for valley in kept])
    log_x = np.log([valley.x for valley in kept])
    exponent, log_factor = (float(v) for v in valleys.line(log_c, log_x))
    axis = {"n_params": "minimum in N", "tokens": "minimum in D"}.get(column, column)
    warnings = valleys.budget_warnings(runs["flops"]) + _dropped(found, axis)
    rows = np.unique(np.concatenate([valley.rows for valley in kept]))
    labels = bootstrap.group_labels(runs, settings.group)
    freedom = sum(len(valley.rows) - 3 for valley in kept)
    if settings.group is not None:
        freedom = min(freedom, len(np.unique(labels[rows])) - 3)
    samples = minima = scatter = None
    widening = 1.0
    if len(kept) < FEWEST_BUDGETS:
        warnings.append(
            f"few points: no intervals, {len(kept)} budgets determine a line exactly; at least 3 are needed"
        )
    elif freedom < FEWEST_FREEDOM:
        warnings.append(
            f"few points: no intervals, {len(rows)} rows leave {max(freedom, 0)} degrees of freedom about the "
            f"parabolas; at least {FEWEST_FREEDOM} are needed"
        )
    elif settings.bootstrap:
        rng = np.random.default_rng([settings.seed, 4])
        multipliers = bootstrap.signs(rng, settings.bootstrap, int(labels.max()) + 1)[:, labels]
        minima = valleys.resample_valleys(runs, column, kept, multipliers)[0]
        samples = np.stack(valleys.line_with_gaps(log_c, minima), axis=1)
        widening, scatter = _scatter(log_c, log_x, minima)
        if widening > 1:
            warnings.append(
                f"scatter: the minima ({axis}) lie {widening:.2g}x farther from the line than the noise within budgets "
                "explains; intervals are widened by that factor"
            )
    return Power(
        exponent, math.exp(log_factor), found, float(sum((v.residual**2).sum() for v in kept)), len(rows),
        len(np.unique(labels[rows])), freedom, samples, minima, widening, scatter, warnings,
    )  # fmt: skip


def _dropped(found: list[Valley], axis: str) -> list[str]:
    """Budgets that are left out and why; many that have too few runs share one warning."""
    small = [valley for valley in found if valley.reason and valley.reason.startswith("few points")]
    warnings = [f"{v.reason} (budget C = {v.budget:.4g}, dropped)" for v in small]
    if len(small) > 3:
        named = ", ".join(f"{valley.budget:.4g}" for valley in small[:6]) + (", ..." if len(small) > 6 else "")
        warnings = [f"few points: {len(small)} budgets of too few runs or sizes are dropped: C = {named}"]
    others = [valley for valley in found if valley.reason and valley not in small]
    return warnings + [f"{v.reason} (budget C = {v.budget:.4g}, {axis}, dropped)" for v in others]


def hold_out(power: Power, settings: Settings, exponent_name: str, factor_name: str) -> dict[str, Any] | None:
    """The line through all but the largest budgets against the minima of these; None when too few would be left."""
    kept = power.kept
    count = settings.holdout if settings.holdout is not None else 1
    if count <= 0 or len(kept) - count < 2:
        return None
    rest, held = kept[:-count], kept[-count:]
    exponent, factor = (
        float(v) for v in valleys.line(*(np.log([getattr(v, n) for v in rest]) for n in ("budget", "x")))
    )
    predicted = np.array([math.exp(factor + exponent * math.log(v.budget)) for v in held])
    observed = np.array([v.x for v in held])
    error = predicted / observed - 1
    return {
        "held_out": count, "by": "budget", "largest_fitted": rest[-1].budget, "largest_held_out": held[-1].budget,
        "mean_relative_error": float(error.mean()), "mean_absolute_relative_error": float(np.abs(error).mean()),
        "worst_relative_error": float(error[np.argmax(np.abs(error))]),
        "parameters_without": {exponent_name: exponent, factor_name: math.exp(factor)},
        "observed": observed, "predicted": predicted,
    }  # fmt: skip


def _scatter(log_c: Array, log_x: Array, minima: Array) -> tuple[float, dict[str, float]]:
    """How much farther minima lie from their line than resampling predicts; 1 unless significant at 1 %."""

    def about_line(values: Array) -> Array:
        exponent, factor = valleys.line(log_c, values)
        return ((values - exponent[..., None] * log_c - factor[..., None]) ** 2).sum(axis=-1)

    noise = minima - np.nanmedian(minima, axis=0)
    expected = about_line(noise[np.isfinite(noise).all(axis=1)])
    observed = float(about_line(log_x[None])[0])
    if len(expected) < 100:
        return 1.0, {}
    ratio = math.sqrt(observed / max(float(expected.mean()), 1e-300))
    p = float((1 + (expected >= observed).sum()) / (1 + len(expected)))
    return (ratio if p < 0.01 and ratio > 1 else 1.0), {"ratio": ratio, "p": p}


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
