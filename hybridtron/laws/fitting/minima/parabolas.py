"""Laws of the loss minima of compute budgets: a power law through the minima of local parabolas, and its report."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.errors import UserError
from hybridtron.laws.data.outliers import OUTLIERS, outlier_flags
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import BUDGET_TOLERANCE, gather_budgets
from hybridtron.laws.fitting.minima.loss_minima import WINDOW, LossMinimum, chosen_window, parabola_curves
from hybridtron.laws.fitting.minima.minima_fit import Axis, MinimaFit, fit_minima
from hybridtron.laws.fitting.minima.power_law import predict
from hybridtron.laws.fitting.uncertainty.extrapolation import not_held_out
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.report.verdict import moves, verdict
from hybridtron.laws.result import Fit
from hybridtron.reporting.numbers import plural

TOO_FEW = "fewer than two budgets left"


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
    if (flags := outlier_flags(runs, settings.options.get("outliers"))) is not None:
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
