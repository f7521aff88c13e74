"""Derivatives of a formula by the complex step (Squire and Trapp 1998), and whether it allows them.

f(theta + i h) = f(theta) + i h f'(theta) up to h^2, without any difference of nearby numbers. numpy compares complex
numbers by their real parts first, so comparisons, `where`, `minimum` and `maximum` keep the derivative of the side that
they choose. abs, rounding and `.real` lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.fitting.optimize import Array, Problem

_STEP = 1e-30
_AT_ONCE = 20_000  # complex values that stay in cache
_TRIED = 16  # parameter vectors at which a formula's derivatives are checked
_LOST = 0.05  # share of wrong derivatives that no kink of the formula explains


def differentiate(
    evaluate: Callable[..., Any], data: Mapping[str, Array], theta: Array
) -> tuple[Array, Array]:  # fmt: skip
    """Return log loss [k, n], nan where the formula is not above zero, and its derivatives [k, p, n]; theta [k, p]."""
    (k, p), n = theta.shape, len(next(iter(data.values())))
    value, derivative = np.empty((k, n)), np.empty((k, p, n))
    steps = 1j * _STEP * np.eye(p)
    for part in np.array_split(np.arange(k), max(1, k * p * n // _AT_ONCE)):  # all derivatives in one call
        stepped = (theta[part, None] + steps).reshape(-1, p)
        with np.errstate(all="ignore"):
            loss = np.broadcast_to(evaluate(stepped, data), (len(stepped), n)).reshape(len(part), p, n)
            positive = np.where(loss.real > 0, loss.real, np.nan)
            value[part], derivative[part] = np.log(positive[:, 0]), loss.imag / _STEP / positive
    return value, np.nan_to_num(derivative, nan=0.0, posinf=0.0, neginf=0.0)


def check_formula(law: str, names: Sequence[str], problem: Problem) -> None:
    """Compare derivatives with differences at random parameters.

    Raises UserError where a parameter's are lost, and where the formula fails on arrays; `names` are of the parameters.
    """
    span = problem.upper - problem.lower
    theta = problem.lower + span * np.random.default_rng(0).uniform(0.1, 0.9, (_TRIED, len(span)))
    rows = np.unique(np.linspace(0, len(problem.target) - 1, 32).round().astype(np.intp))
    try:
        with np.errstate(all="ignore"):
            slopes = problem.jacobian(theta, rows)[1]
            for j, name in enumerate(names):
                step = 1e-6 * span[j] * (np.arange(len(span)) == j)
                rise = (problem.predict(theta + step, rows) - problem.predict(theta - step, rows)) / (2 * step[j])
                if not np.isfinite(rise).any():
                    raise UserError(
                        f"law {law}: the formula has no finite loss above zero within its bounds; are the bounds, and "
                        "what is held at a value, those of these columns?"
                    )
                close = np.isclose(slopes[:, j], rise, rtol=1e-3, atol=1e-6 / span[j])
                if np.mean(~close[np.isfinite(rise)]) > _LOST:
                    raise UserError(
                        f"law {law}: the formula loses the derivative by {name}; expected no abs, rounding or .real of "
                        "parameters (np.sqrt(x * x) is abs, np.where and comparisons are allowed)"
                    )
    except (TypeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"law {law}: the formula fails on arrays ({reason}); expected numpy's operations (np.where for if, "
            "np.minimum for min)"
        ) from None
