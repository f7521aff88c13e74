"""The objective of a fit, its gradient, and the problem that both are of.

The objective is the sum over points of Huber's function of the residual (Huber 1964, eq. 2.1): r^2 / 2 up to
`delta`, then delta (|r| - delta / 2); delta = inf is least squares. Everything works on a batch of parameter
vectors at once, each with its own point weights, so that bootstrap replicates cost no Python loop.

Shapes: k parameter vectors, n points, p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import huber

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """A curve, the data it must meet, and the box its parameters live in.

    Attributes:
        predict: parameters [k, p] -> values [k, n'], at the points selected by the second argument.
        jacobian: parameters [k, p] -> (values [k, n'], derivatives [k, p, n']), by default at all points.
        target: what the values should equal, [n].
        delta: Huber threshold.
        lower, upper: bounds, [p].
    """

    predict: Callable[[Array, slice | NDArray[np.intp]], Array]
    jacobian: Callable[..., tuple[Array, Array]]
    target: Array
    delta: float
    lower: Array
    upper: Array


def objective(problem: Problem, theta: Array, weights: Array | None = None) -> Array:
    """Sum Huber's function over points for each parameter vector; theta [k, p], weights [k, n] -> [k]."""
    return huber_sum(problem.predict(theta, slice(None)) - problem.target, weights, problem.delta)


def describe_objective(delta: float, of: str) -> str:
    """Return what the objective sums, in words; `of` is the quantity whose error it is."""
    return f"{'half the squared error' if math.isinf(delta) else 'Huber'} of {of}, summed over points"


def huber_sum(residual: Array, weights: Array | None, delta: float) -> Array:
    """Sum Huber's function of residuals [k, n] over points; weights [k, n] -> [k]."""
    loss = huber(delta, residual)
    return np.asarray((loss if weights is None else loss * weights).sum(axis=1))


def gradient(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Compute the objective [k] and its gradient [k, p]."""
    value, jacobian = problem.jacobian(theta)
    residual = value - problem.target
    slope = np.clip(residual, -problem.delta, problem.delta)
    return huber(problem.delta, residual).sum(axis=1), np.einsum("kpn,kn->kp", jacobian, slope)
