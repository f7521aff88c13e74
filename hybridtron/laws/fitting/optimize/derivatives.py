"""Derivatives of a formula, exact to rounding, and whether it allows them.

A formula of the operations that `dual` knows carries its derivatives along. Any other is differentiated by the
complex step (Squire and Trapp 1998): f(theta + i h) = f(theta) + i h f'(theta) up to h^2, without any difference of
nearby numbers. numpy compares complex numbers by their real parts first, so comparisons, `where`, `minimum` and
`maximum` keep the derivative of the side that they choose. abs, rounding and `.real` lose it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.fitting.optimize.dual import Dual, parameters
from hybridtron.laws.fitting.optimize.problem import Array, Problem

_STEP = 1e-30
_AT_ONCE = 20_000  # derivatives that stay in cache
_TRIED = 16  # parameter vectors at which a formula's derivatives are checked
_LOST = 0.05  # share of wrong derivatives that no kink of the formula explains


def differentiate(
    evaluate: Callable[..., Any], data: Mapping[str, Array], theta: Array
) -> tuple[Array, Array]:  # fmt: skip
    """Return log loss [k, n], nan where the formula is not above zero, and its derivatives [k, p, n]; theta [k, p].

    `evaluate` takes the p coordinates, each [k, 1], and the columns.
    """
    (k, p), n = theta.shape, len(next(iter(data.values())))
    value, derivative = np.empty((k, n)), np.empty((k, p, n))
    with np.errstate(all="ignore"):
        for part in np.array_split(np.arange(k), max(1, k * p * n // _AT_ONCE)):  # all derivatives in one call
            loss, slopes = _carried(evaluate, data, theta[part]) or by_complex_step(evaluate, data, theta[part])
            positive = np.where(loss > 0, loss, np.nan)
            value[part], whole = np.log(positive), 1 / positive
            for i in range(p):
                derivative[part, i] = slopes[i] * whole if i in slopes else 0.0
    return value, np.nan_to_num(derivative, copy=False, nan=0.0, posinf=0.0, neginf=0.0)


def _carried(
    evaluate: Callable[..., Any], data: Mapping[str, Array], theta: Array
) -> tuple[Array, dict[int, Array]] | None:  # fmt: skip
    """Return loss and its derivatives by parameter, which broadcast to [k, n]; None for an operation without a rule."""
    try:
        found = evaluate(parameters(theta), data)
    except (TypeError, ValueError, AttributeError):
        return None
    return (found.value, found.slopes) if isinstance(found, Dual) else None


def by_complex_step(
    evaluate: Callable[..., Any], data: Mapping[str, Array], theta: Array
) -> tuple[Array, dict[int, Array]]:  # fmt: skip
    """Return loss [k, n] and its derivatives by parameter, each [k, n]; theta [k, p]."""
    (k, p), n = theta.shape, len(next(iter(data.values())))
    stepped = (theta[:, None] + 1j * _STEP * np.eye(p)).reshape(-1, p)
    loss = np.broadcast_to(evaluate(list(stepped.T[:, :, None]), data), (k * p, n)).reshape(k, p, n)
    return loss.real[:, 0], dict(enumerate(np.moveaxis(loss.imag / _STEP, 1, 0)))


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
