"""The cross-check of the parametric law: the same law by variable projection, and the picture of its exponents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import huber

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import CurveFit
from hybridtron.laws.fitting.optimize.variable_projection import project
from hybridtron.laws.report.verdict import moves
from hybridtron.laws.result import Series

OBJECTIVE = "half the squared error of loss, summed over points, at the best E, A, B >= 0 of each alpha and beta"
Found = tuple[dict[str, Any], list[Series], list[str]]


def by_projection(runs: Runs, fitted: CurveFit, architectures: Sequence[str]) -> Found:
    """Fit the law by variable projection: its entry of `cross_checks`, the plot of the exponents, and warnings.

    Each method's objective is also computed at the other's parameters; neither can be beaten on its own.
    """
    freedom = fitted.n_groups - len(fitted.optimum.theta)
    if freedom < 1 or fitted.curve.undetermined:
        return {}, [], []
    x, y = np.log(runs["n_params"]), np.log(runs["tokens"])
    middle = x.mean(), y.mean()
    rows_of = {arch: runs["arch"] == arch if arch else np.ones(len(runs), bool) for arch in architectures or [""]}
    tables = [(x[rows] - middle[0], y[rows] - middle[1], runs["loss"][rows]) for rows in rows_of.values()]
    found = project(tables, freedom)
    alpha, beta = (float(value) for value in found.exponents)
    parameters: dict[str, float] = {}
    value = np.empty(len(runs))
    for (arch, rows), (u, v, _), (e, a, b) in zip(rows_of.items(), tables, found.sizes, strict=True):
        name = f"[{arch}]" if arch else ""
        at_one = a * np.exp(alpha * middle[0]), b * np.exp(beta * middle[1])
        parameters |= {f"E{name}": float(e), f"A{name}": float(at_one[0]), f"B{name}": float(at_one[1])}
        value[rows] = e + a * np.exp(-alpha * u) + b * np.exp(-beta * v)
    parameters |= {"alpha": alpha, "beta": beta}
    problem = fitted.curve.problem
    ours_there = float(huber(problem.delta, np.log(value) - problem.target).sum())
    theirs_here = float(((fitted.predict(runs.columns) - runs["loss"]) ** 2).sum() / 2)
    spans = dict(zip(("alpha", "beta"), found.spans(), strict=True))
    entry = {
        "parameters": parameters,
        "relative_difference": {
            name: parameters[name] / one - 1 if one else None for name, one in fitted.parameters.items()
        },
        "objective": {"of": OBJECTIVE, "value": found.objective, "at_this_fit": theirs_here},
        "objective_of_this_fit": {"value": fitted.optimum.objective, "at_the_projection": ours_there},
        "region": spans,
    }
    warnings = []
    if ours_there < fitted.optimum.objective * (1 - 1e-6) - 1e-14 * len(runs):
        warnings.append(
            f"search: variable projection found a lower objective, {ours_there:.6g} against "
            f"{fitted.optimum.objective:.6g}; this fit is not the optimum"
        )
    if moved := moves(fitted.parameters, parameters, fitted.intervals or {}):
        warnings.append(
            "cross-check: variable projection, which squares all errors of the loss, leaves the intervals: "
            + ", ".join(moved)
        )
    axes: dict[str, Any] = {"x_label": "alpha", "y_label": "beta", "x_log": False}
    panel = "exponents"
    here = [np.array([fitted.parameters[name]]) for name in ("alpha", "beta")]
    series = [
        Series(panel, "95 % region, least squares", "region", found.alphas, found.betas, z=found.rise, **axes),
        Series(panel, "variable projection", "points", np.array([alpha]), np.array([beta]), **axes),
        Series(panel, "this fit", "points", here[0], here[1], **axes),
    ]
    return {"variable_projection": entry}, series, warnings
