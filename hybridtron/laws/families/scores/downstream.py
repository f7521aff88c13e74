"""Err = epsilon - k exp(-gamma L) (Gadre et al. 2024, 2403.08540): downstream error from loss.

The squared error is minimised, as in the paper. A prediction at N and D is chained: a loss law is fitted to the
same runs, and both are resampled together, so that the interval carries the uncertainty of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
from scipy.special import fdtrc

from hybridtron.errors import UserError
from hybridtron.laws.data import points
from hybridtron.laws.data.outliers import OUTLIERS
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import overtraining, parametric
from hybridtron.laws.fitting.curves.complete import complete_fit
from hybridtron.laws.fitting.curves.curve import Curve, CurveFit, fit_curve
from hybridtron.laws.fitting.curves.plots import measured_against_predicted
from hybridtron.laws.fitting.optimize.problem import Array, Problem, describe_objective
from hybridtron.laws.fitting.uncertainty.extrapolation import extrapolation_warnings
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.result import Fit, Series

# Bounds of the error at the mean loss (in largest errors), of its log slope there (from that of the largest error over
# the range of the loss), and of gamma (in ranges of the loss).
_LOWER = np.array([-2.0, -16.0, 3e-4])
_UPPER = np.array([3.0, 8.0, 150.0])


def build(runs: Runs, delta: float) -> Curve:
    """Build the curve over these runs.

    Fitted as v + s (1 - exp(-gamma u)) / gamma, u the loss from its mean: v and s are the error and its slope at the
    mean loss, so that a curve that hardly bends leaves only gamma loose, not epsilon and k against each other.
    """
    loss, error = runs["loss"], runs["error"]
    middle = float(loss.mean())
    u = loss - middle

    def predict_at(theta: Array, at: Any) -> Array:
        gamma = theta[:, 2:3]
        return theta[:, :1] - np.exp(theta[:, 1:2]) * np.expm1(-gamma * at) / gamma

    def jacobian(theta: Array, points: Any = slice(None)) -> tuple[Array, Array]:
        slope, gamma, at = np.exp(theta[:, 1:2]), theta[:, 2:3], u[points]
        rise = -np.expm1(-gamma * at) / gamma
        bend = slope * (at * np.exp(-gamma * at) - rise) / gamma
        return theta[:, :1] + slope * rise, np.stack([np.ones_like(rise), slope * rise, bend], axis=1)

    def public(theta: Array) -> dict[str, Array]:
        gamma = theta[:, 2]
        gain = np.exp(theta[:, 1]) / gamma  # k exp(-gamma L) at the mean loss
        with np.errstate(over="ignore"):
            return {"epsilon": theta[:, 0] + gain, "k": gain * np.exp(gamma * middle), "gamma": gamma}

    top, span = float(error.max()), max(float(np.ptp(error)), 1e-6)
    reach = max(float(np.ptp(loss)), 1e-3 * middle)
    drops = [span * part for part in (0.03, 0.1, 0.3, 0.6, 1.0, 2.0, 4.0)]  # k exp(-gamma L) at the mean loss
    starts = np.array([
        (top + part * span - drop, math.log(drop * gamma), gamma)
        for part, drop, gamma in product(
            (-0.05, 0.0, 0.05, 0.2, 0.5, 1.0, 3.0), drops, np.geomspace(0.06, 60, 24) / reach
        )
    ])  # fmt: skip
    shift, unit = np.array([0.0, math.log(top / reach), 0.0]), np.array([top, 1.0, 1 / reach])
    problem = Problem(
        lambda theta, rows: predict_at(theta, u[rows]), jacobian, error, delta,
        shift + _LOWER * unit, shift + _UPPER * unit,
    )  # fmt: skip
    return Curve(
        problem, starts, public, lambda theta, columns: predict_at(theta, columns["loss"] - middle), error,
        describe_objective(delta, "the downstream error"), False,
        "all rows have the same loss" if np.ptp(loss) == 0 else None,
    )  # fmt: skip


def fit(runs: Runs, settings: Settings) -> Fit:
    """Fit the law; see `LAW` for columns and options."""
    delta = math.inf if settings.delta is None else settings.delta
    chosen = settings.options.get("loss_law", "parametric")
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

    def predict(fitted: CurveFit, point: Mapping[str, float]) -> tuple[list[dict[str, Any]], list[str]]:
        return _predict(fitted, chain, point, runs)

    result = complete_fit(
        "downstream", build, runs, settings, delta=delta, size=-runs["loss"], size_name="falling loss",
        predict_point=predict, curves=lambda fitted: _curves(runs, fitted),
        check=lambda fitted: _bound_warnings(fitted, runs["loss"]),
        facts=lambda fitted: {"typical": math.sqrt(float(np.mean(fitted.residual**2)))},
    )  # fmt: skip
    if chain is not None:
        result.search["loss_law"] = {"law": chosen, "parameters": chain.parameters, "intervals": chain.intervals,
                                     "objective": chain.optimum.objective}  # fmt: skip
        result.warnings.extend(f"loss law: {warning}" for warning in chain.warnings)
    if held := result.extrapolation:
        for key in ("largest_fitted", "largest_held_out"):
            held[key.replace("largest", "lowest_loss")] = -held.pop(key)
    return result


def _predict(
    fitted: CurveFit, chain: CurveFit | None, point: Mapping[str, float], runs: Runs
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    warnings = []
    if "L" in point:
        if set(point) != {"L"} or not point["L"] > 0:
            raise UserError(f"predict = {dict(point)}: expected L alone, above zero, or two of N, D, C, M")
        entry: dict[str, Any] = {"loss": point["L"]}
        samples: Array | None = np.array([point["L"]])
    else:
        assert chain is not None
        full = points.complete(point, "downstream")
        if set(full) == {"C"}:
            raise UserError(f"predict = C={full['C']:g}: expected L alone, or two of N, D, C, M")
        at = {"n_params": np.array([full["N"]]), "tokens": np.array([full["D"]])}
        entry = {**full, **chain.estimate("loss", lambda theta: chain.curve.predict(theta, at)[:, 0])}
        samples = None if chain.samples is None else chain.curve.predict(chain.samples, at)[:, 0]
        n, d = runs["n_params"], runs["tokens"]
        data = {"N": n, "D": d, "C": points.FLOPS_PER_PARAMETER_TOKEN * n * d}
        warnings = extrapolation_warnings("downstream", full, data)
    entry["error"] = float(fitted.predict({"loss": np.array([entry["loss"]])})[0])
    entry["error_interval"] = None  # where it would leave out the uncertainty of the loss
    if samples is not None:
        entry["error_interval"] = fitted.interval(
            lambda theta: fitted.curve.predict(theta, {"loss": samples[:, None]})[:, 0]
        )
    lowest = float(runs["loss"].min())
    if entry["loss"] < lowest - 0.5 * float(np.ptp(runs["loss"])):
        warnings.append(
            f"extrapolation: loss {entry['loss']:.3g} lies far below the lowest measured loss {lowest:.3g}; "
            "the curve is not supported there"
        )
    return [entry], warnings


def _bound_warnings(fitted: CurveFit, loss: Array) -> list[str]:
    problem, epsilon, gamma = fitted.curve.problem, fitted.parameters["epsilon"], fitted.parameters["gamma"]
    warnings = []
    if epsilon > 1:
        warnings.append(
            f"not identified: epsilon is {epsilon:.3g}, above the error of always failing; the data hardly bend, so "
            "only the curve inside the data means anything"
        )
    elif not _bends(loss, fitted.curve.observed):
        warnings.append(
            "not identified: a straight line in the loss fits these errors as well; epsilon, k and gamma cannot be "
            "told apart, and only the curve inside the data means anything"
        )
    if gamma <= problem.lower[2] * 1.01 or gamma >= problem.upper[2] * 0.99:
        warnings.append(f"not identified: gamma ends at its bound {gamma:g}")
    return warnings


def _bends(loss: Array, error: Array) -> bool:
    """Return whether a parabola in the loss fits better than a line (F test at 5 %); True for too few rows."""
    freedom = len(loss) - 3
    if freedom < 1 or np.ptp(loss) == 0:
        return bool(np.ptp(loss) > 0)
    u = (loss - loss.mean()) / np.ptp(loss)
    line, curve = (float(((error - np.polyval(np.polyfit(u, error, degree), u)) ** 2).sum()) for degree in (1, 2))
    return bool(fdtrc(1, freedom, max(line - curve, 0.0) / max(curve, 1e-300) * freedom) < 0.05)


def _curves(runs: Runs, fitted: CurveFit) -> list[Series]:
    loss = runs["loss"]
    x = np.linspace(loss.min() - 0.1 * np.ptp(loss), loss.max() + 0.05 * np.ptp(loss), 80)
    y = fitted.predict({"loss": x})
    band = fitted.band(lambda theta: fitted.curve.predict(theta, {"loss": x}))
    axes: dict[str, Any] = {"x_label": "loss (nats per token)", "y_label": "downstream error", "x_log": False}
    return [
        Series("error against loss", "runs", "points", loss, runs["error"], **axes),
        Series("error against loss", "epsilon - k exp(-gamma L)", "line", x, y, **band, **axes),
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
        "loss_law": (
            "parametric",
            "law that turns N and D into loss for predictions: parametric or overtraining",
            ("parametric", "overtraining"),
        ),
        "outliers": OUTLIERS,
    },
)
