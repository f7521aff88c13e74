"""Curves that are sums of power laws, written as a log-sum-exp of straight lines in the fitted coordinates.

log L = log sum_t exp(line_t), line_t = sum_j slopes[t, j] * theta_j (Hoffmann et al. 2022, 2203.15556, section 3.3).
A term's size enters as its logarithm, so no parameter spans decades and every term stays positive.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hybridtron.laws.fitting.optimize import Array


@dataclass(frozen=True)
class LogSum:
    """Lines over n points; t terms, p coordinates, k parameter vectors.

    Attributes:
        slopes: [t, p, n].
        exponentiate: whether values are L rather than log L.
    """

    slopes: Array
    exponentiate: bool = False
    used: list[tuple[int, int]] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "used", [(int(t), int(j)) for t, j in np.argwhere(self.slopes.any(axis=2))])

    def predict(self, theta: Array, points: Any) -> Array:
        """Compute values at the selected points: theta [k, p] -> [k, n']."""
        terms = np.matmul(theta, self.slopes[:, :, points])  # [t, k, n']
        top = terms.max(axis=0)
        value = top + np.log(np.exp(terms - top).sum(axis=0))
        return np.exp(value) if self.exponentiate else value

    def jacobian(self, theta: Array) -> tuple[Array, Array]:
        """Compute values and derivatives: theta [k, p] -> [k, n] and [k, p, n]."""
        terms = np.matmul(theta, self.slopes)  # [t, k, n]
        top = terms.max(axis=0)
        share = np.exp(terms - top)
        total = share.sum(axis=0)
        share /= total
        value = top + np.log(total)
        derivative = np.zeros((len(theta), *self.slopes.shape[1:]))
        for t, j in self.used:
            derivative[:, j] += share[t] * self.slopes[t, j]
        if self.exponentiate:
            value = np.exp(value)
            derivative *= value[:, None, :]
        return value, derivative


SMALLEST, LARGEST = -15.0, 4.0  # bounds of a term's log size at the anchor, from the log of the mean loss


def anchored(loss: Array) -> tuple[list[float], list[float], list[float]]:
    """Return starting values where the other terms are measured from the middle of the data.

    Returns log sizes of a constant term (parts of the smallest loss), log sizes of a falling term (parts of the range
    of the loss), and exponents.
    """
    span = max(float(np.ptp(loss)), 1e-3 * float(loss.min()))
    floor = [float(np.log(loss.min() * part)) for part in (0.2, 0.4, 0.6, 0.8, 0.95)]
    term = [float(np.log(span * part)) for part in (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)]
    return floor, term, [0.1, 0.3, 0.5, 0.8, 1.5]
