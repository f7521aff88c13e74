"""Parameters of a formula that the user holds at a value instead of fitting them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.fitting.curves.curve import Curve, CurveFit
from hybridtron.laws.fitting.optimize.search import quick_search

WORSE = 1.5  # times the misfit of a free fit, from which held values are told of
_MISSED = 1e-4  # relative misfit too small to tell of
_ROWS = 64  # of losses between the lowest and the highest, at which the reach of a law is tried
_ROUNDING = 0.01  # of log loss: noise of the rows nearest to the end of the reach

FIX = (None, 'parameters held at a value instead of fitted, such as "E=1.87,alpha=0.35"')


def read_fixed(
    given: str | Mapping[str, Any] | None, bounds: Mapping[str, tuple[float, float]], law: str
) -> dict[str, float]:  # fmt: skip
    """Return parameter to value from a mapping or a text such as `E=1.87,alpha=0.35`.

    Raises UserError for an unknown parameter, a value that is no finite number or below zero where `bounds` are not,
    and where nothing is left to fit.
    """
    try:
        if not isinstance(given, str | Mapping | None):
            raise ValueError
        text = [one.split("=") for one in given.split(",")] if isinstance(given, str) else []
        pairs = given.items() if isinstance(given, Mapping) else text
        fixed = {str(name).strip(): float(value) for name, value in pairs}
        if len(fixed) < len(pairs):
            raise ValueError  # a name twice
    except (AttributeError, ValueError):
        raise UserError(f"fix = {given}: expected NAME=NUMBER,NAME=NUMBER, each name once") from None
    for name, value in fixed.items():
        if name not in bounds:
            raise UserError(f"fix = {given}: {law} has no parameter {name!r}; expected {one_of(name, bounds)}")
        if not math.isfinite(value):
            raise UserError(f"fix = {given}: {name} is {value:g}; expected a finite number")
        if value < 0 <= bounds[name][0]:
            raise UserError(f"fix = {given}: {name} is {value:g}; expected a number that is not below zero")
    if set(fixed) == set(bounds):
        raise UserError(f"fix = {given}: every parameter of {law} is held; expected at least one to fit")
    return fixed


def check_reach(law: str, fixed: Mapping[str, float], curve: Curve) -> list[str]:
    """Compare what a law can give with parameters held, over its search's starts, with the losses measured.

    Returns a warning where some losses lie beyond it; raises UserError where all do.
    """
    if not fixed:
        return []
    target = curve.problem.target
    rows = np.argsort(target)[np.unique(np.linspace(0, len(target) - 1, _ROWS).astype(np.intp))]
    with np.errstate(all="ignore"):
        values = curve.problem.predict(curve.starts, rows)  # [k, rows]
    values = values[np.isfinite(values)]
    if not values.size:
        return []  # refused by the check of the formula
    held, losses = _written(fixed), f"the losses are {math.exp(target.min()):.4g} to {math.exp(target.max()):.4g}"
    for side, end, beyond in (
        ("above", float(values.min()), target < values.min() - _ROUNDING),
        ("below", float(values.max()), target > values.max() + _ROUNDING),
    ):
        reach = f"stays {side} {math.exp(end):.4g} nats"
        if beyond.all():
            raise UserError(f"fix = {held}: {law} then {reach}; {losses}; expected values that reach them")
        if beyond.any():
            return [
                f"held: with {held} the law {reach}, beyond which lie {beyond.sum()} of {len(target)} rows; {losses}"
            ]
    return []


def misfit_warnings(fixed: Mapping[str, float], fitted: CurveFit, free: Curve) -> list[str]:
    """Warn where a fit with parameters held misses the losses by far more than one of all parameters, `free`."""
    n, p = len(free.problem.target), len(free.problem.lower)
    if n < 3 * p:
        return []
    theta = quick_search(free.problem, free.starts)[None]
    with_all = float(np.median(np.abs(free.problem.predict(theta, slice(None))[0] - free.problem.target)))
    with_held = float(np.median(np.abs(fitted.residual)))
    if with_held <= max(WORSE * with_all * math.sqrt(n / (n - p)), _MISSED):
        return []
    return [
        f"held: with {_written(fixed)} the law misses the losses by {100 * with_held:.2g} % at the median, and by "
        f"{100 * with_all:.2g} % with every parameter fitted; are the held values those of this data set?"
    ]


def _written(fixed: Mapping[str, float]) -> str:
    return ",".join(f"{name}={value:.6g}" for name, value in fixed.items())
