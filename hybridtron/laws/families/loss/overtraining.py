"""L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024, 2403.08540), M tokens per parameter.

As in the paper the squared error of the loss is minimised; a `delta` makes it Huber's function of that error. The
two terms are anchored at the geometric means of C and M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.outliers import OUTLIERS
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.complete import complete_fit
from hybridtron.laws.fitting.curves.curve import Curve, CurveFit, fit_curve
from hybridtron.laws.fitting.curves.plots import measured_against_predicted
from hybridtron.laws.fitting.curves.power_sum import SLOPES, PowerSum
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import significant


def compute_and_ratio(runs: Any) -> tuple[Array, Array]:
    """Return columns flops and M, or 6 N D and D / N from n_params and tokens; each [n]."""
    if "n_params" in runs and "tokens" in runs:
        n, d = runs["n_params"], runs["tokens"]
        return points.FLOPS_PER_PARAMETER_TOKEN * n * d, d / n
    if "flops" in runs and "M" in runs:
        return runs["flops"], runs["M"]
    raise UserError("overtraining needs columns n_params and tokens, or flops and M")


POWERS = PowerSum(
    coordinates=lambda columns: np.log(compute_and_ratio(columns)),
    sizes={"E": "irreducible loss E", "a": "over-training term a", "b": "under-training term b"},
    exponents=("eta",),
    directions=np.array([[[0, 0]], [[-1, 1]], [[-1, -1]]], dtype=float),
    slopes=(*(0.2 * slope for slope in SLOPES), *SLOPES),
    steepest=2.0,
)


def build(runs: Runs, delta: float, log_residual: bool = False) -> Curve:
    """Build the curve over these runs, for the error of the loss or (`log_residual`) of its logarithm."""
    return POWERS.build(runs, delta, log_residual)


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options."""
    delta = math.inf if settings.delta is None else settings.delta
    make = partial(build, log_residual=settings.options.get("residual") == "log")
    flops, ratio = compute_and_ratio(runs)
    if len(np.unique(ratio.round(6))) < 2:
        raise UserError(f"{runs.source}: every run has the same tokens per parameter; expected at least two ratios")
    data = {"C": flops, "M": ratio, "N": np.sqrt(flops / ratio / 6), "D": np.sqrt(flops * ratio / 6)}

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
        full = points.complete(point, "overtraining")
        if set(full) == {"C"}:
            full = points.complete({"C": full["C"], "M": best_ratio(fitted.parameters)}, "overtraining")
        beyond = float(excess(fitted.parameters, full["C"], full["M"]))
        entry = {
            **full,
            **fitted.estimate_at("loss", {"n_params": full["N"], "tokens": full["D"]}),
            "excess_over_compute_optimal": beyond,
        }
        return [entry], extrapolation_warnings("overtraining", full, data)

    alone = _architectures(runs, settings, make, delta)
    middle = float(np.exp(np.log(flops).mean()))
    result = complete_fit(
        "overtraining", make, runs, settings, delta=delta, size=flops, size_name="6 N D", predict_point=predict,
        curves=lambda fitted: _curves(runs, fitted, alone), check=POWERS.warnings,
        facts=lambda fitted: {
            **fitted.estimate("best_M", lambda theta: best_ratio(fitted.curve.public(theta))),
            "flops": middle, "architectures": [_far_beyond(name, one, middle) for name, one in alone.items()],
        },
    )  # fmt: skip
    if alone:
        result.sensitivity["architectures"] = {
            name: {"parameters": fitted.parameters, "intervals": fitted.intervals,
                   "objective": fitted.optimum.objective, "best_M": best_ratio(fitted.parameters)}
            for name, fitted in alone.items()
        }  # fmt: skip
    return result


def best_ratio(parameters: Mapping[str, Any]) -> Any:
    """Return the tokens per parameter of the least loss at any compute: (b / a)^(1 / (2 eta))."""
    with np.errstate(all="ignore"):
        return np.exp(np.log(parameters["b"] / parameters["a"]) / (2 * parameters["eta"]))


def excess(parameters: Mapping[str, Any], flops: Any, ratio: Any) -> Any:
    """Compute the loss at (C, M) above the compute-optimal loss at C, in nats per token."""
    a, b, eta = parameters["a"], parameters["b"], parameters["eta"]
    return (a * ratio**eta + b * ratio**-eta - 2 * np.sqrt(a * b)) * flops**-eta


def _architectures(runs: Runs, settings: Settings, make: Any, delta: float) -> dict[str, CurveFit]:
    if "arch" not in runs or runs["arch"].dtype != object:
        return {}
    tables = {name: table for name, table in runs.split("arch").items() if len(table) >= 8}
    return {n: fit_curve(make, table, settings, delta) for n, table in tables.items()} if len(tables) > 1 else {}


def _far_beyond(name: str, fitted: CurveFit, flops: float) -> dict[str, Any]:
    """Estimate the excess loss of one architecture at ten times its best ratio."""

    def at(theta: Array) -> Array:
        public = fitted.curve.public(theta)
        return np.asarray(excess(public, flops, 10 * best_ratio(public)))

    return {"name": name, **fitted.estimate("excess", at)}


def _curves(runs: Runs, fitted: CurveFit, by_architecture: Mapping[str, CurveFit]) -> list[Series]:
    flops, ratio = compute_and_ratio(runs)
    axes: dict[str, Any] = {"x_label": "training FLOPs", "y_label": "loss (nats per token)"}
    curves = []
    levels = np.round(np.log2(ratio))
    levels = levels // math.ceil((np.ptp(levels) + 1) / 8)  # at most eight lines
    for level in np.unique(levels):
        rows = levels == level
        middle = float(np.exp(np.log(ratio[rows]).mean()))
        label = f"M = {middle:.3g}"
        curves.append(Series("loss against compute", label, "points", flops[rows], runs["loss"][rows], **axes))
        x = np.geomspace(flops.min(), flops.max(), 60)
        at = {"flops": x, "M": np.full_like(x, middle)}
        curves.append(Series("loss against compute", label, "line", x, fitted.predict(at), **axes))
    budget = float(np.exp(np.log(flops).mean()))
    x = np.geomspace(ratio.min(), ratio.max(), 80)
    for name, one in (by_architecture or {"all runs": fitted}).items():

        def excess_at(theta: Array, one: CurveFit = one) -> Array:
            public = {key: value[:, None] for key, value in one.curve.public(theta).items()}
            return np.asarray(excess(public, budget, x))

        panel = f"excess over compute-optimal at {significant(budget)} FLOPs"
        words: dict[str, Any] = {"x_label": "tokens per parameter M", "y_label": "excess loss (nats per token)"}
        y = excess(one.parameters, budget, x)
        curves.append(Series(panel, name, "line", x, y, **words, **one.band(excess_at)))
    return curves + measured_against_predicted(fitted, "loss")


LAW = Law(
    name="overtraining",
    summary="L = E + (a M^eta + b M^-eta) C^-eta: loss at compute C and M tokens per parameter",
    columns=("loss",),
    optional_columns=("n_params", "tokens", "flops", "M"),
    parameters=(*POWERS.sizes, *POWERS.exponents),
    fit=fit,
    options={
        "residual": ("loss", "whether the error of the loss or of its log is minimised: loss or log", ("loss", "log")),
        "outliers": OUTLIERS,
    },
)
