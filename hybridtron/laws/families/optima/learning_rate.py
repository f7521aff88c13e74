"""lr_opt = k C^s: the best learning rate against compute, from the loss minimum of each budget's learning-rate sweep.

The form of the DeepSeek LLM report (2401.02954, section 3.1). Each budget's loss is fitted by a local parabola in
log learning rate, as `isoflop` does in log N. A sweep of one budget gives the best learning rate of that budget alone.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.budgets import budget_warnings, gather_budgets
from hybridtron.laws.fitting.minima.loss_minima import (
    LossMinimum,
    chosen_window,
    dropped_budgets,
    find_loss_minima,
    minimum_interval,
    parabola_curves,
)
from hybridtron.laws.fitting.minima.minima_fit import Axis
from hybridtron.laws.fitting.minima.parabolas import Parabolas
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.law import Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import plural

COLUMN = "learning_rate"
SWEEPS = Parabolas(
    name="learning-rate",
    summary="lr_opt = k C^s: best learning rate against compute, from a local parabola in log lr for each budget",
    axes={COLUMN: Axis(COLUMN, "s", "k", "best learning rate")},
    window=8.0,
    windows=lambda window: [other for other in (window / 2, window * 2) if other > 1],
    objective="squared residual of loss about the parabolas in log learning rate, summed",
    budget=lambda one: {
        "flops": one.budget, "learning_rate": one.x, "loss": one.loss, "kept": one.kept, "reason": one.reason
    },
    panel="sweeps",
    x_label="learning rate",
)  # fmt: skip


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law, or the best learning rate where one budget alone has a usable sweep."""
    runs = gather_budgets(runs, settings)
    minima = find_loss_minima(runs, COLUMN, chosen_window(settings, SWEEPS.window))
    usable = [minimum for minimum in minima if minimum.kept]
    return _fit_one_budget(runs, settings, minima, usable[0]) if len(usable) == 1 else SWEEPS.fit(runs, settings)


def _fit_one_budget(runs: Runs, settings: Settings, minima: list[LossMinimum], best: LossMinimum) -> Fit:
    """Estimate the learning rate of least loss; raises UserError for predictions, which need several budgets."""
    if settings.predict:
        raise UserError(f"predict: one budget with a usable sweep (C = {best.budget:.4g}) predicts no other")
    labels = bootstrap.group_labels(runs, settings.group)
    groups = len(np.unique(labels[best.rows]))
    warnings = budget_warnings(runs["flops"]) + dropped_budgets(minima, COLUMN)
    span = minimum_interval(best, runs[COLUMN]) if groups == len(best.rows) else None
    if span is None:
        warnings.append(
            f"few points: no interval, {plural(len(best.rows), 'row')} of {plural(groups, 'run')} do not "
            "determine where the loss is least"
        )
    window = chosen_window(settings, SWEEPS.window)
    others = {other: find_loss_minima(runs, COLUMN, other) for other in SWEEPS.windows(window)}
    moved = {
        f"{other:g}": {COLUMN: one.x} for other, found in others.items() for one in found
        if one.budget == best.budget and one.kept
    }  # fmt: skip
    parameters, intervals = {COLUMN: best.x}, {COLUMN: span} if span else None
    least = Series(
        SWEEPS.panel, "least loss", "points", np.array([best.x]), np.array([best.loss]), SWEEPS.x_label,
        "loss (nats per token)", note=f"best learning rate {best.x:.3g}",
    )  # fmt: skip
    return Fit(
        parameters=parameters, objective=float((best.residual**2).sum()), n_points=len(best.rows),
        n_groups=groups, intervals=intervals, settings={"window": window, "objective": SWEEPS.objective},
        sensitivity={"window": moved}, warnings=warnings,
        search={"budgets": [SWEEPS.budget(one) for one in minima]},
        verdict=verdict("learning-rate-one-budget", parameters, intervals, flops=best.budget),
        curves=[*parabola_curves(runs, COLUMN, minima, SWEEPS.panel, SWEEPS.x_label), least],
    )  # fmt: skip


LAW = replace(SWEEPS.law(), fit=fit)
