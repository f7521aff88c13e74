"""Everything that a curve law reports: the fit, refits, checks, predictions and what to plot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import Build, CurveFit, fit_curve
from hybridtron.laws.fitting.curves.refits import hold_out, sensitivity
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.extrapolation import not_held_out
from hybridtron.laws.law import Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.laws.result import Fit, Series
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
    held = hold_out(build, runs, settings, delta, fitted, size, size_name)
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
