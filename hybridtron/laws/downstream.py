"""Err = epsilon - k exp(-gamma L) (Gadre et al. 2024, 2403.08540): downstream error from loss.

The squared error is minimised, as in the paper. A prediction at N and D is chained: a loss law is fitted to the
same runs, and both are resampled together, so that the interval carries the uncertainty of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws import overtraining, parametric, points
from hybridtron.laws.curve import Curve, CurveFit, complete_fit, fit_curve, measured_against_predicted
from hybridtron.laws.law import Fit, Law, Series, Settings
from hybridtron.laws.runs import Runs
from hybridtron.laws.search import Array, Problem
from hybridtron.laws.wording import held_out_sentence, interval_sentence, number

_LOWER = np.array([0.0, -14.0, 1e-4])  # epsilon, log of k exp(-gamma L) at the mean loss, gamma
_UPPER = np.array([10.0, 3.0, 50.0])


def build(runs: Runs, delta: float) -> Curve:
    """The curve over these runs."""
    loss, error = runs["loss"], runs["error"]
    middle = float(loss.mean())
    u = loss - middle

    def predict_at(theta: Array, at: Any) -> Array:
        return theta[:, :1] - np.exp(theta[:, 1:2] - theta[:, 2:3] * at)

    def jacobian(theta: Array) -> tuple[Array, Array]:
        gain = np.exp(theta[:, 1:2] - theta[:, 2:3] * u)
        return theta[:, :1] - gain, np.stack([np.ones_like(gain), -gain, gain * u], axis=1)

    def public(theta: Array) -> dict[str, Array]:
        with np.errstate(over="ignore"):
            k = np.exp(theta[:, 1] + theta[:, 2] * middle)
        return {"epsilon": theta[:, 0], "k": k, "gamma": theta[:, 2]}

    top, span = float(error.max()), max(float(np.ptp(error)), 1e-6)
    starts = np.array(list(product(
        [top + part * span for part in (-0.05, 0.0, 0.05, 0.2, 0.5, 1.0, 3.0)],
        [math.log(span * part) for part in (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)],
        np.geomspace(0.02, 20, 24),
    )))  # fmt: skip
    words = "half the squared error" if math.isinf(delta) else "Huber"
    problem = Problem(lambda theta, rows: predict_at(theta, u[rows]), jacobian, error, delta, _LOWER, _UPPER)
    return Curve(
        problem, starts, public, lambda theta, columns: predict_at(theta, columns["loss"] - middle), error,
        f"{words} of the downstream error, summed over points", False,
    )  # fmt: skip


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options."""
    delta = math.inf if settings.delta is None else settings.delta
    chosen = settings.options.get("loss_law", "parametric")
    if chosen not in ("parametric", "overtraining"):
        raise UserError(f"option loss_law={chosen!r}; expected parametric or overtraining")
    chain = None
    if any("L" not in point for point in settings.predict):
        if "n_params" not in runs or "tokens" not in runs:
            raise UserError(
                f"{runs.source}: a prediction from N and D needs columns n_params and tokens for the loss law"
            )
        if chosen == "parametric":
            chain = fit_curve(parametric.build, runs, settings, parametric.DELTA)
        else:
            chain = fit_curve(overtraining.build, runs, settings, math.inf)

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[dict[str, Any], list[str]]:
        return _predict(fitted, chain, point, runs)

    result = complete_fit(
        "downstream", build, runs, settings, delta=delta, size=-runs["loss"], size_name="falling loss",
        predict_point=predict, verdict=_verdict, curves=lambda fitted: _curves(runs, fitted), check=_bound_warnings,
    )  # fmt: skip
    if chain is not None:
        result.search["loss_law"] = {"law": chosen, "parameters": chain.parameters, "intervals": chain.intervals,
                                     "objective": chain.optimum.objective}  # fmt: skip
        result.warnings.extend(f"loss law: {warning}" for warning in chain.warnings)
    if result.extrapolation is not None:
        held = {**result.extrapolation}
        for key in ("largest_fitted", "largest_held_out"):
            held[key.replace("largest", "lowest_loss")] = -held.pop(key)
        return replace(result, extrapolation=held)
    return result


def _predict(
    fitted: CurveFit, chain: CurveFit | None, point: Mapping[str, float], runs: Runs
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    if "L" in point:
        if set(point) != {"L"} or not point["L"] > 0:
            raise UserError(f"--predict {dict(point)}: expected L alone, above zero, or two of N, D, C, M")
        entry: dict[str, Any] = {"loss": point["L"]}
        theta_loss = np.array([point["L"]])
        sample_loss = theta_loss
        warnings = []
    else:
        assert chain is not None
        full = points.complete(point, "downstream")
        if set(full) == {"C"}:
            raise UserError(f"--predict C={full['C']:g}: expected L alone, or two of N, D, C, M")
        at = {"n_params": np.array([full["N"]]), "tokens": np.array([full["D"]])}
        theta_loss = chain.curve.predict(chain.optimum.theta[None], at)[:, 0]
        entry = {**full, "loss": float(theta_loss[0]),
                 "loss_interval": chain.spread(lambda theta: chain.curve.predict(theta, at)[:, 0])}  # fmt: skip
        sample_loss = chain.curve.predict(chain.samples, at)[:, 0] if chain.samples is not None else theta_loss
        n, d = runs["n_params"], runs["tokens"]
        warnings = points.extrapolation_warnings(full, {"N": n, "D": d, "C": 6 * n * d})

    middle = float(runs["loss"].mean())

    def error(theta: Array) -> Array:
        losses = sample_loss if len(sample_loss) == len(theta) else theta_loss
        return theta[:, 0] - np.exp(theta[:, 1] - theta[:, 2] * (losses - middle))

    best = float(fitted.curve.predict(fitted.optimum.theta[None], {"loss": theta_loss})[0, 0])
    entry |= {"error": best, "error_interval": fitted.spread(error)}
    lowest = float(runs["loss"].min())
    if entry["loss"] < lowest - 0.5 * float(np.ptp(runs["loss"])):
        warnings.append(
            f"extrapolation: loss {entry['loss']:.3g} lies far below the lowest measured loss {lowest:.3g}; "
            "the curve is not supported there"
        )
    return entry, warnings


def _bound_warnings(fitted: CurveFit) -> list[str]:
    epsilon, _, gamma = fitted.optimum.theta
    warnings = []
    if epsilon > 1 or epsilon >= _UPPER[0] - 1e-6:
        warnings.append(
            f"not identified: epsilon is {epsilon:.3g}, above the error of always failing; the data hardly bend, so "
            "only the curve inside the data means anything"
        )
    if gamma <= _LOWER[2] * 1.01 or gamma >= _UPPER[2] * 0.99:
        warnings.append(f"not identified: gamma ends at its bound {gamma:g}")
    return warnings


def _verdict(fitted: CurveFit, held: dict[str, Any] | None) -> list[str]:
    p = fitted.parameters
    spans = fitted.intervals or {}
    predicted = fitted.curve.problem.predict(fitted.optimum.theta[None], slice(None))[0]
    typical = float(np.sqrt(np.mean((predicted - fitted.curve.observed) ** 2)))
    sentences = [
        interval_sentence(
            "Downstream error approaches epsilon at high loss, epsilon", p["epsilon"], spans.get("epsilon")
        ),
        interval_sentence("It falls exponentially as loss falls, with gamma", p["gamma"], spans.get("gamma")),
        f"The curve misses the measured errors by {number(typical)} (root mean square).",
    ]
    if held is not None:
        sentences.append(
            f"Fitted without the {held['held_out']} runs of lowest loss, the law predicts their error to "
            f"{100 * held['mean_absolute_relative_error']:.2g} % on average."
        )
        return sentences
    return sentences + held_out_sentence(None, "error")


def _curves(runs: Runs, fitted: CurveFit) -> list[Series]:
    loss = runs["loss"]
    x = np.linspace(loss.min() - 0.1 * np.ptp(loss), loss.max() + 0.05 * np.ptp(loss), 80)
    y = fitted.curve.predict(fitted.optimum.theta[None], {"loss": x})[0]
    low = high = None
    if fitted.samples is not None:
        low, high = np.quantile(fitted.curve.predict(fitted.samples, {"loss": x}), [0.025, 0.975], axis=0)
    axes: dict[str, Any] = {"x_label": "loss (nats per token)", "y_label": "downstream error", "x_log": False}
    return [
        Series("error against loss", "runs", "points", loss, runs["error"], **axes),
        Series("error against loss", "epsilon - k exp(-gamma L)", "line", x, y, low=low, high=high, **axes),
        *measured_against_predicted(fitted, "error"),
    ]


LAW = Law(
    name="downstream",
    summary="Err = epsilon - k exp(-gamma L): downstream error from loss, chained after a loss law",
    columns=("loss", "error"),
    optional_columns=("n_params", "tokens"),
    parameters=("epsilon", "k", "gamma"),
    fit=fit,
    options={
        "loss_law": ("parametric", "law that turns N and D into loss for predictions: parametric or overtraining"),
        "outliers": (None, "column that flags outliers, to report how far the answer moves without them"),
    },
)
