"""Laws of the loss minima of compute budgets: a power law through the minima of local parabolas, and its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.refits import OUTLIERS, outlier_flags
from hybridtron.laws.fitting.minima.delta_method import line_spread
from hybridtron.laws.fitting.minima.loss_minima import (
    BUDGET_TOLERANCE,
    LossMinimum,
    budget_warnings,
    find_loss_minima,
    gather_budgets,
    parabola_curves,
    resample_loss_minima,
)
from hybridtron.laws.fitting.minima.power_law import PowerLaw, fit_line, predict
from hybridtron.laws.fitting.optimize.search import Array
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.law import Fit, Law, Series, Settings
from hybridtron.laws.report.verdict import moves, not_held_out, verdict
from hybridtron.reporting.numbers import plural

FEWEST_BUDGETS = 3
FEWEST_FREEDOM = 5
TOO_FEW = "fewer than two budgets left"
WINDOW = "rows within this factor of the minimum are fitted; inf takes all"


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


@dataclass(frozen=True, kw_only=True)
class Parabolas:
    """The declaration of a law of the loss minima of compute budgets.

    Attributes:
        axes: by the name of x_opt in predictions; the first is the one that plots and the extrapolation check show.
        window: the factor around a minimum within which rows are fitted, by default.
        windows: the window -> other windows that the sensitivity tries.
        objective: what the objective sums, in words.
        budget: the minima of one budget, one for each axis -> its entry in the results.
        panel, x_label: name of the plot of parabolas, and of its horizontal axis.
        derive: an entry of the predictions -> what follows from it.
        cross_check: runs, axes, window, intervals and the compute asked for -> entries of `cross_checks`, sentences of
            the verdict, and warnings.
    """

    name: str
    summary: str
    axes: Mapping[str, Axis]
    window: float
    windows: Callable[[float], Iterable[float]]
    objective: str
    budget: Callable[..., dict[str, Any]]
    panel: str
    x_label: str
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda entry: {}
    cross_check: Callable[..., tuple[dict[str, Any], list[str], list[str]]] = lambda *given: ({}, [], [])

    def law(self) -> Law:
        """Return the law, with the columns and parameters of its axes."""
        axes = self.axes.values()
        return Law(
            name=self.name,
            summary=self.summary,
            columns=(*(axis.column for axis in axes), "flops", "loss"),
            parameters=(*(axis.exponent for axis in axes), *(axis.factor for axis in axes)),
            fit=self.fit,
            ignores=("delta",),
            options={
                "window": (self.window, WINDOW), "budget_tolerance": BUDGET_TOLERANCE, "outliers": OUTLIERS
            },
        )  # fmt: skip

    def fit(self, runs: Runs, settings: Settings) -> Fit:
        """Fit the law; raises UserError where fewer than two budgets have a minimum inside their data."""
        runs, chosen = gather_budgets(runs, settings), chosen_window(settings, self.window)
        fits = {axis: fit_minima(runs, settings, declared, chosen) for axis, declared in self.axes.items()}
        first, main = next(iter(self.axes.values())), next(iter(fits.values()))
        parameters, intervals = _parameters(fits), _intervals(fits)
        table, moved = _sensitivity(runs, settings, self.axes, fits, chosen, self.windows(chosen))
        held = main.power.hold_out(1 if settings.holdout is None else settings.holdout, 2, "budget")
        warnings = list(dict.fromkeys(warning for fitted in fits.values() for warning in fitted.warnings)) + moved
        predictions = []
        for point in settings.predict:
            powers = {axis: fitted.power for axis, fitted in fits.items()}
            entry, far = predict(self.name, point, "C", "FLOPS", powers)
            predictions.append(entry | self.derive(entry))
            warnings += far
        warnings += not_held_out(settings, held, plural(len(main.kept), "budget"))
        asked = [point["C"] for point in settings.predict]
        crossed, sentences, doubts = self.cross_check(runs, self.axes, chosen, intervals, asked)
        scatter = {axis: fitted.scatter for axis, fitted in fits.items()}
        minima = zip(*(fitted.minima for fitted in fits.values()), strict=True)
        return Fit(
            parameters=parameters,
            objective=main.objective,
            n_points=main.n_points,
            n_groups=main.n_groups,
            intervals=intervals or None,
            settings={"window": chosen, "objective": self.objective},
            sensitivity=table,
            predictions=predictions,
            warnings=warnings + doubts,
            search={"budgets": [self.budget(*found) for found in minima],
                    "scatter_about_the_line": scatter if len(fits) > 1 else main.scatter},
            extrapolation=held,
            cross_checks=crossed,
            verdict=verdict(self.name, parameters, intervals, held=held, broken=runs.broken,
                            kept=[one.budget for one in main.kept],
                            dropped=[one.budget for one in main.minima if not one.kept]) + sentences,
            curves=parabola_curves(runs, first.column, main.minima, self.panel, self.x_label)
            + [series for axis, declared in self.axes.items() for series in fits[axis].curves(declared.quantity)],
        )  # fmt: skip


def chosen_window(settings: Settings, default: float) -> float:
    """Return the window that was asked for, or the law's own; raises UserError for one that holds nothing."""
    window = float(settings.options.get("window", default))
    if not window > 1:
        raise UserError(f"window = {window:g}: expected a factor above 1")
    return window


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


def dropped_budgets(found: list[LossMinimum], axis: str) -> list[str]:
    """Warn of budgets that are left out and why; many that have too few runs share one warning."""
    small = [minimum for minimum in found if minimum.reason and minimum.reason.startswith("few points")]
    warnings = [f"{one.reason} (budget C = {one.budget:.4g}, dropped)" for one in small]
    if len(small) > 3:
        named = ", ".join(f"{minimum.budget:.4g}" for minimum in small[:6]) + (", ..." if len(small) > 6 else "")
        warnings = [f"few points: {len(small)} budgets of too few runs or values are dropped: C = {named}"]
    others = [minimum for minimum in found if minimum.reason and minimum not in small]
    return warnings + [f"{one.reason} (budget C = {one.budget:.4g}, {axis}, dropped)" for one in others]


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


def _parameters(fits: Mapping[str, MinimaFit]) -> dict[str, float]:
    """Return the parameters of all axes, exponents first."""
    powers = [fitted.power for fitted in fits.values()]
    return {power.names[i]: power.parameters[power.names[i]] for i in (0, 1) for power in powers}


def _intervals(fits: Mapping[str, MinimaFit]) -> dict[str, list[float]]:
    """Return their intervals in the same order; without those of an axis that has none."""
    spans = {name: span for fitted in fits.values() for name, span in fitted.power.intervals.items()}
    return {name: spans[name] for name in _parameters(fits) if name in spans}


def _sensitivity(
    runs: Runs,
    settings: Settings,
    axes: Mapping[str, Axis],
    fits: Mapping[str, MinimaFit],
    window: float,
    windows: Iterable[float],
) -> tuple[dict[str, Any], list[str]]:
    """Return the parameters under other windows and without odd rows, and a warning where an exponent moves."""
    values, intervals = _parameters(fits), _intervals(fits)
    names = [axis.exponent for axis in axes.values()]
    spans = {name: intervals.get(name, [values[name] - 0.05, values[name] + 0.05]) for name in names}
    tried = {other: refit(axes, runs, other) for other in windows}
    table: dict[str, Any] = {"window": {f"{other:g}": found or TOO_FEW for other, found in tried.items()}}
    near = {other: found for other, found in tried.items() if window / 3 <= other <= window * 3}
    moved = [f"{move} at window {other:g}" for other, found in near.items() for move in moves(values, found, spans)]
    warnings = ["window sensitivity: " + ", ".join(moved)] if moved else []
    far = _far_rows(next(iter(fits.values())).kept, len(runs))
    filters = {"without_far_points": ("rows beyond 4 robust standard deviations of the parabolas", far)}
    if (flags := outlier_flags(runs, settings)) is not None:
        filters["without_flagged"] = (f"rows flagged by column {flags[0]}", flags[1])
    for key, (rule, rows) in filters.items():
        if not rows.any():
            continue
        count, lines = int(rows.sum()), [int(line) for line in runs.lines[rows]]
        cleaned = _fits(axes, runs.take(~rows), settings, window)
        found = _parameters(cleaned)
        table[key] = {"rule": rule, "rows": count, "lines": lines, "parameters": found or TOO_FEW}
        if moved := moves(values, found, _narrowed(spans, values, _intervals(cleaned))):
            warnings.append(f"filter sensitivity: without {count} {rule}: " + ", ".join(moved))
    return table, warnings


def _narrowed(
    spans: Mapping[str, list[float]], values: Mapping[str, float], cleaned: Mapping[str, list[float]]
) -> dict[str, list[float]]:
    """Return spans no wider about their values than without the odd rows, whose own noise must not excuse them."""
    half = {name: (cleaned[name][1] - cleaned[name][0]) / 2 if name in cleaned else math.inf for name in spans}
    return {
        name: [max(low, values[name] - half[name]), min(high, values[name] + half[name])]
        for name, (low, high) in spans.items()
    }


def _fits(axes: Mapping[str, Axis], runs: Runs, settings: Settings, window: float) -> dict[str, MinimaFit]:
    """Return the fits of all axes; empty when fewer than two budgets are left."""
    try:
        return {name: fit_minima(runs, settings, axis, window) for name, axis in axes.items()}
    except UserError:
        return {}


def refit(axes: Mapping[str, Axis], runs: Runs, window: float) -> dict[str, float]:
    """Return the parameters alone; empty when fewer than two budgets are left."""
    return _parameters(_fits(axes, runs, Settings(bootstrap=0), window))


def _far_rows(kept: list[LossMinimum], count: int) -> NDArray[np.bool_]:
    """Mark the rows that lie beyond 4 robust standard deviations of their parabolas, [count]."""
    far = np.zeros(count, dtype=bool)
    scale = 1.4826 * float(np.median(np.abs(np.concatenate([minimum.noise for minimum in kept]))))
    for minimum in kept:
        far[minimum.rows[np.abs(minimum.noise) > 4 * max(scale, 1e-12)]] = True
    return far
