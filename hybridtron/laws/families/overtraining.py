"""L(C, M) = E + (a M^eta + b M^-eta) C^-eta (Gadre et al. 2024, 2403.08540), M tokens per parameter.

As in the paper the squared error of the loss is minimised; a `delta` makes it Huber's function of that error. The
two terms are anchored at the geometric means of C and M.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Series, Settings
from hybridtron.laws.families.sentences import held_out_sentence, interval_sentence
from hybridtron.laws.fitting.curve import OUTLIERS, Curve, CurveFit, complete_fit, fit_curve, measured_against_predicted
from hybridtron.laws.fitting.logsum import LARGEST, SMALLEST, LogSum, anchored
from hybridtron.laws.fitting.optimize import Array, Problem
from hybridtron.reporting.numbers import interval, significant

_STEEPEST = 2.0  # bound of eta


def compute_and_ratio(runs: Runs | Mapping[str, Array]) -> tuple[Array, Array]:
    """Return columns flops and M, or 6 N D and D / N from n_params and tokens; each [n]."""
    if "n_params" in runs and "tokens" in runs:
        n, d = runs["n_params"], runs["tokens"]
        return points.FLOPS_PER_PARAMETER_TOKEN * n * d, d / n
    if "flops" in runs and "M" in runs:
        return runs["flops"], runs["M"]
    raise UserError("overtraining needs columns n_params and tokens, or flops and M")


def build(runs: Runs, delta: float, log_residual: bool = False) -> Curve:
    """Build the curve over these runs, for the error of the loss or (`log_residual`) of its logarithm."""
    loss = runs["loss"]
    flops, ratio = compute_and_ratio(runs)
    log_c, log_m = np.log(flops), np.log(ratio)
    c0, m0 = float(log_c.mean()), float(log_m.mean())
    slopes = np.zeros((3, 4, len(loss)))
    slopes[0, 0] = slopes[1, 1] = slopes[2, 2] = 1
    slopes[1, 3] = (log_m - m0) - (log_c - c0)
    slopes[2, 3] = -(log_m - m0) - (log_c - c0)
    curve = LogSum(slopes, exponentiate=not log_residual)

    def public(theta: Array) -> dict[str, Array]:
        eta = theta[:, 3]
        with np.errstate(over="ignore"):
            a, b = np.exp(theta[:, 1] + eta * (c0 - m0)), np.exp(theta[:, 2] + eta * (c0 + m0))
        return {"E": np.exp(theta[:, 0]), "a": a, "b": b, "eta": eta}

    def predict(theta: Array, columns: Mapping[str, Array]) -> Array:
        c, m = (np.log(values) for values in compute_and_ratio(columns))
        eta = theta[:, 3, None]
        falling = np.exp(theta[:, 1, None] + eta * (m - m0 - c + c0))
        rising = np.exp(theta[:, 2, None] - eta * (m - m0 + c - c0))
        return np.exp(theta[:, 0, None]) + falling + rising

    floor, term, slope = anchored(loss)
    starts = np.array(list(product(floor, term, term, [0.2 * s for s in slope] + slope)))
    target = np.log(loss) if log_residual else loss
    error = "log loss" if log_residual else "loss"
    words = f"half the squared error of {error}" if math.isinf(delta) else f"Huber of {error}"
    level = float(np.log(loss.mean()))
    lower, upper = (np.array([level + size] * 3 + [steep]) for size, steep in ((SMALLEST, 0.0), (LARGEST, _STEEPEST)))
    problem = Problem(curve.predict, curve.jacobian, target, delta, lower, upper)
    return Curve(problem, starts, public, predict, loss, f"{words}, summed over points", log_residual)


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options."""
    delta = math.inf if settings.delta is None else settings.delta
    residual = settings.options.get("residual", "loss")
    if residual not in ("loss", "log"):
        raise UserError(f"option residual={residual!r}; expected loss or log")

    def make(part: Runs, delta: float) -> Curve:
        return build(part, delta, residual == "log")

    flops, ratio = compute_and_ratio(runs)
    if len(np.unique(ratio.round(6))) < 2:
        raise UserError(f"{runs.source}: every run has the same tokens per parameter; expected at least two ratios")
    data = {"C": flops, "M": ratio, "N": np.sqrt(flops / ratio / 6), "D": np.sqrt(flops * ratio / 6)}

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[dict[str, Any], list[str]]:
        full = points.complete(point, "overtraining")
        if set(full) == {"C"}:
            full = points.complete({"C": full["C"], "M": best_ratio(fitted.parameters)}, "overtraining")
        at = {"n_params": np.array([full["N"]]), "tokens": np.array([full["D"]])}

        def loss(theta: Array) -> Array:
            return fitted.curve.predict(theta, at)[:, 0]

        beyond = float(excess(fitted.parameters, full["C"], full["M"]))
        entry = {**full, **fitted.estimate("loss", loss), "excess_over_compute_optimal": beyond}
        return entry, points.extrapolation_warnings(full, data)

    by_architecture = _architectures(runs, settings, make, delta)
    result = complete_fit(
        "overtraining", make, runs, settings, delta=delta, size=flops, size_name="6 N D", predict_point=predict,
        verdict=_verdict, curves=lambda fitted: _curves(runs, fitted, by_architecture), check=_bound_warnings,
    )  # fmt: skip
    if by_architecture:
        result.sensitivity["architectures"] = {
            name: {"parameters": fitted.parameters, "intervals": fitted.intervals,
                   "objective": fitted.optimum.objective, "best_M": best_ratio(fitted.parameters)}
            for name, fitted in by_architecture.items()
        }  # fmt: skip
        result.verdict.append(_compare(by_architecture, float(np.exp(np.log(flops).mean()))))
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


def _compare(fits: Mapping[str, CurveFit], flops: float) -> str:
    parts = []
    for name, fitted in fits.items():
        far = 10 * best_ratio(fitted.parameters)
        value = float(excess(fitted.parameters, flops, far))

        def at(theta: Array, fitted: CurveFit = fitted) -> Array:
            public = fitted.curve.public(theta)
            return excess(public, flops, 10 * best_ratio(public))

        span = fitted.spread(at)
        parts.append(f"{name} {significant(value)}" + (f" ({interval(span)})" if span else ""))
    return (
        f"Trained at ten times its best ratio of tokens to parameters with {significant(flops)} FLOPs, each "
        f"architecture loses, in nats per token: {'; '.join(parts)}."
    )


def _bound_warnings(fitted: CurveFit) -> list[str]:
    theta, lower = fitted.optimum.theta, fitted.curve.problem.lower
    words = ("irreducible loss E", "over-training term a", "under-training term b")
    warnings = [
        f"not identified: the fit drives the {words[i]} to zero; these data cannot measure it"
        for i in range(3)
        if theta[i] < lower[i] + 5
    ]
    return warnings + fitted.at_bounds({3: "eta"})


def _verdict(fitted: CurveFit, held: dict[str, Any] | None) -> list[str]:
    p = fitted.parameters
    span = (fitted.intervals or {}).get("eta")
    best = best_ratio(p)
    return [
        interval_sentence("At a fixed ratio of tokens to parameters the loss falls as C^-eta, eta", p["eta"], span),
        interval_sentence(
            "The least loss at any compute is at M tokens per parameter, M", float(best),
            fitted.spread(lambda theta: best_ratio(fitted.curve.public(theta))),
        ),
        *held_out_sentence(held, "loss"),
    ]  # fmt: skip


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
        y = fitted.curve.predict(fitted.optimum.theta[None], at)[0]
        curves.append(Series("loss against compute", label, "line", x, y, **axes))
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
    parameters=("E", "a", "b", "eta"),
    fit=fit,
    options={
        "residual": ("loss", "whether the error of the loss or of its log is minimised: loss or log"),
        "outliers": OUTLIERS,
    },
)
