"""A law from one formula: its bounds and its name are enough.

Derivatives come from the formula itself by the complex step (Squire and Trapp 1998), exact to rounding, so a formula
must be written with numpy operations that take complex numbers (no abs, no comparisons).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.points import extrapolation_warnings
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Law, Settings
from hybridtron.laws.fitting.curve import Build, Curve, CurveFit, complete_fit, measured_against_predicted
from hybridtron.laws.fitting.optimize import Array, Problem

_STEP = 1e-30
_AT_ONCE = 20_000  # complex values that stay in cache
_STARTS = 6000
Formula = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class FormulaLaw(Law):
    """A law that also gives its curve, for fits of a user's own."""

    build: Build


def formula_law(
    name: str,
    summary: str,
    formula: Formula,
    columns: Sequence[str],
    bounds: Mapping[str, tuple[float, float]],
    *,
    log_scale: Sequence[str] = (),
    size: Callable[[Runs], Array] | None = None,
    delta: float = 1e-3,
) -> FormulaLaw:
    """Build a law that predicts `loss` by a formula, fitted by Huber of log loss.

    Args:
        formula: called with one array for each column and one for each parameter, all by name; returns the loss.
        columns: canonical columns that the formula reads.
        bounds: of each parameter, in its own units; also the box that random starts are drawn from.
        log_scale: parameters searched by their logarithm (bounds above zero).
        size: what "largest" means for the held-out runs, [n]; None takes the lowest losses.
        delta: Huber threshold when the user gives none.
    """
    names = list(bounds)
    is_log = np.array([parameter in log_scale for parameter in names])
    box = np.array([bounds[parameter] for parameter in names], dtype=float)  # [p, 2]
    box[is_log] = np.log(box[is_log])

    def values(theta: Any) -> dict[str, Any]:
        return {parameter: np.exp(theta[:, i]) if is_log[i] else theta[:, i] for i, parameter in enumerate(names)}

    def evaluate(theta: Any, data: Mapping[str, Array]) -> Any:
        arguments = {parameter: value[:, None] for parameter, value in values(theta).items()}
        return formula(**{column: data[column] for column in columns}, **arguments)

    def build(runs: Runs, delta: float) -> Curve:
        data = {column: runs[column] for column in columns}

        def predict(theta: Array, rows: Any) -> Array:
            return np.log(evaluate(theta, {column: array[rows] for column, array in data.items()}))

        starts = np.random.default_rng(0).uniform(box[:, 0], box[:, 1], (_STARTS, len(names)))

        def derivatives(theta: Array, rows: Any = slice(None)) -> tuple[Array, Array]:
            return _differentiate(evaluate, {column: array[rows] for column, array in data.items()}, theta)

        problem = Problem(predict, derivatives, np.log(runs["loss"]), delta, box[:, 0], box[:, 1])
        return Curve(problem, starts, values, evaluate, runs["loss"], "Huber of log loss, summed over points", True)

    def fit(runs: Runs, settings: Settings) -> Fit:
        chosen = delta if settings.delta is None else settings.delta
        largest = size(runs) if size is not None else 1 / runs["loss"]
        return complete_fit(
            name, build, runs, settings, delta=chosen, size=largest, size_name="size",
            predict_point=lambda fitted, point: _predict(name, columns, fitted, point, runs),
            curves=lambda fitted: measured_against_predicted(fitted, "loss"), template="formula",
            check=lambda fitted: fitted.at_bounds(dict(enumerate(names))),
        )  # fmt: skip

    assert all(math.isfinite(edge) for pair in box for edge in pair), f"{name}: bounds must be finite"
    return FormulaLaw(
        name=name, summary=summary, columns=(*columns, "loss"), parameters=tuple(names), fit=fit, build=build
    )


def _differentiate(evaluate: Formula, data: Mapping[str, Array], theta: Array) -> tuple[Array, Array]:
    """Return log loss [k, n] and its derivatives [k, p, n] by the complex step; theta [k, p]."""
    (k, p), n = theta.shape, len(next(iter(data.values())))
    value, derivative = np.empty((k, n)), np.empty((k, p, n))
    steps = 1j * _STEP * np.eye(p)
    for part in np.array_split(np.arange(k), max(1, k * p * n // _AT_ONCE)):  # all derivatives in one call
        stepped = (theta[part, None] + steps).reshape(-1, p)
        values = np.log(evaluate(stepped, data)).reshape(len(part), p, n)
        value[part], derivative[part] = values[:, 0].real, values.imag / _STEP
    return value, derivative


def _predict(
    name: str, columns: Sequence[str], fitted: CurveFit, point: Mapping[str, float], runs: Runs
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    if set(point) != set(columns):
        raise UserError(f"predict = {dict(point)}: {name} predicts from {', '.join(columns)}; expected just these")
    return [{**point, **fitted.estimate_at("loss", point)}], extrapolation_warnings(
        point, {column: runs[column] for column in columns}
    )
