"""Refits of a curve to a part of the runs: held-out runs, and the sensitivity to thresholds and filters."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from hybridtron.laws.data.outliers import outlier_flags
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import Build, Curve, CurveFit
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.optimize.search import quick_search
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.fitting.uncertainty.extrapolation import held_out
from hybridtron.laws.law import Settings
from hybridtron.laws.report.verdict import moves
from hybridtron.reporting.numbers import plural


def refit(build: Build, runs: Runs, delta: float) -> tuple[Curve, Array, dict[str, float]]:
    """Fit the curve without intervals: the curve, its coordinates [1, p] and its parameters."""
    curve = build(runs, delta)
    theta = quick_search(curve.problem, curve.starts)[None]
    return curve, theta, {name: float(value[0]) for name, value in curve.public(theta).items()}


def hold_out(
    build: Build, runs: Runs, settings: Settings, delta: float, fitted: CurveFit, size: Array, size_name: str
) -> dict[str, Any] | None:
    """Refit without the runs of the largest `size` [n], and compare prediction with measurement on them.

    Returns None when it was not asked for, or when too few runs would be left (two for each parameter).
    """
    labels = bootstrap.group_labels(runs, settings.group)
    n_groups, p = fitted.n_groups, len(fitted.optimum.theta)
    largest = np.full(n_groups, -math.inf)
    np.maximum.at(largest, labels, size)
    count = settings.holdout if settings.holdout is not None else max(1, round(n_groups / 10))
    if count <= 0 or n_groups - count < 2 * p:
        return None
    out = np.isin(labels, np.argsort(largest, kind="stable")[-count:])
    held = runs.take(out)
    curve, theta, without = refit(build, runs.take(~out), delta)
    if not curve.problem.jacobian(theta)[1][0].any(axis=1).all():
        return None  # a parameter, such as one of an architecture, on which the rest has no bearing
    ends = {"largest_fitted": float(size[~out].max()), "largest_held_out": float(size[out].max())}
    return held_out(
        count, size_name, curve.predict(theta, held.columns)[0], build(held, delta).observed,
        int(np.argmax(size[out])), held_out_rows=int(out.sum()), **ends, parameters_without=without,
    )  # fmt: skip


def sensitivity(
    build: Build, runs: Runs, settings: Settings, delta: float, fitted: CurveFit
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Fit the parameters under other thresholds, without far points, and without rows flagged as outliers.

    Returns them with a warning for each filter under which a parameter leaves its interval (or moves by 10 % when there
    is none).
    """
    others = [math.inf, 0.1] if math.isinf(delta) else [delta * 10, delta / 10, math.inf]
    table: dict[str, Any] = {
        "delta": {f"{other:g}": refit(build, runs, other)[2] for other in others if other != delta}
    }
    far = np.abs(fitted.residual) > 4 * max(fitted.noise, 1e-12)
    column, flagged = outlier_flags(runs, settings.options.get("outliers")) or ("", np.zeros(len(runs), bool))
    rule = {"rule": "residual beyond 4 robust standard deviations", "lines": [int(line) for line in runs.lines[far]]}
    near = {name: [value - 0.1 * abs(value), value + 0.1 * abs(value)] for name, value in fitted.parameters.items()}
    warnings = []
    for key, row, which, out, about in (
        ("without_far_points", "row", " beyond 4 robust standard deviations", far, rule),
        ("without_flagged", "flagged row", "", flagged, {"column": column}),
    ):
        if not out.any() or (~out).sum() <= 2 * len(fitted.optimum.theta):
            continue
        parameters = refit(build, runs.take(~out), delta)[2]
        table[key] = {**about, "rows": int(out.sum()), "parameters": parameters}
        if moved := moves(fitted.parameters, parameters, fitted.intervals or near):
            warnings.append(f"filter sensitivity: without {plural(int(out.sum()), row)}{which}: " + ", ".join(moved))
    return table, warnings
