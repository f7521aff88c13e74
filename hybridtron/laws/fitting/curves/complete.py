"""Everything that a curve law reports: the fit, side fits, checks, predictions and what to plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import Build, CurveFit, fit_curve
from hybridtron.laws.fitting.curves.refits import hold_out, sensitivity
from hybridtron.laws.fitting.optimize.search import Array
from hybridtron.laws.law import Fit, Series, Settings
from hybridtron.laws.report.verdict import not_held_out, verdict
from hybridtron.reporting.numbers import plural


def complete_fit(
    law: str,
    build: Build,
    runs: Runs,
    settings: Settings,
    *,
    delta: float,
    size: Array,
    size_name: str,
    predict_point: Callable[[CurveFit, Mapping[str, float]], tuple[list[dict[str, Any]], list[str]]],
    curves: Callable[[CurveFit], list[Series]],
    check: Callable[[CurveFit], list[str]],
    facts: Callable[[CurveFit], dict[str, Any]] = lambda fitted: {},
    cross_check: Callable[[CurveFit], tuple[dict[str, Any], list[Series], list[str]]] = lambda fitted: ({}, [], []),
    template: str | None = None,
) -> Fit:
    """Fit everything that a curve law reports.

    Args:
        delta: Huber threshold.
        size: what "largest" means for the held-out runs, [n]; `size_name` is its name.
        predict_point: one point of `predict` -> its answers and its warnings.
        curves: what to plot.
        check: warnings of the law's own.
        facts: what the template of the verdict needs besides parameters, intervals and the extrapolation check.
        cross_check: entries of `cross_checks`, what to plot of them, and warnings.
        template: name of that template; by default the law's.

    Raises UserError where there are no more rows than parameters.
    """
    _check_rows(law, build, runs, delta)
    fitted = fit_curve(build, runs, settings, delta)
    table, moved = sensitivity(build, runs, settings, delta, fitted)
    crossed, more_curves, doubts = cross_check(fitted)
    warnings = fitted.warnings + moved + check(fitted) + doubts
    held = hold_out(build, runs, settings, delta, size, size_name)
    warnings += not_held_out(settings, held, plural(fitted.n_groups, "run"))
    predictions = []
    for point in settings.predict:
        entries, more = predict_point(fitted, point)
        predictions += entries
        warnings += more
    return Fit(
        parameters=fitted.parameters,
        objective=fitted.optimum.objective,
        n_points=len(runs),
        n_groups=fitted.n_groups,
        intervals=fitted.intervals,
        settings={"delta": delta, "objective": fitted.curve.objective},
        sensitivity=table,
        predictions=predictions,
        warnings=warnings,
        search=fitted.optimum.describe(),
        extrapolation=held,
        cross_checks=crossed,
        verdict=verdict(template or law, fitted.parameters, fitted.intervals, held=held, **facts(fitted)),
        curves=curves(fitted) + more_curves,
    )


def _check_rows(law: str, build: Build, runs: Runs, delta: float) -> None:
    """Refuse as many parameters as rows: then any number of curves goes through all of them."""
    if len(runs) <= (parameters := len(build(runs, delta).problem.lower)):
        raise UserError(
            f"{runs.source}: {plural(len(runs), 'row')}; expected more than the {parameters} parameters of {law}"
        )


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
