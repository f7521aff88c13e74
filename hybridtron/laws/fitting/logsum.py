"""Curves that are sums of power laws, written as a log-sum-exp of straight lines in the fitted coordinates.

log L = log sum_t exp(line_t), line_t = sum_j slopes[t, j] * theta_j (Hoffmann et al. 2022, 2203.15556, section 3.3).
A term's size enters as its logarithm, so no parameter spans decades and every term stays positive. Sizes are anchored
at the geometric mean of the data, so that a term's size and its exponent are nearly independent of each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curve import Curve, CurveFit
from hybridtron.laws.fitting.identified import Tested
from hybridtron.laws.fitting.optimize import Array, Problem


def log_sum(slopes: Array, theta: Array) -> tuple[Array, Array]:
    """Compute log L and its derivatives: slopes [t, p, n], theta [k, p] -> [k, n] and [k, p, n]."""
    terms = np.matmul(theta, slopes)  # [t, k, n]
    top = terms.max(axis=0)
    share = np.exp(terms - top)
    total = share.sum(axis=0)
    share /= total
    derivative = np.zeros((len(theta), *slopes.shape[1:]))
    for t, j in np.argwhere(slopes.any(axis=2)):
        derivative[:, j] += share[t] * slopes[t, j]
    return top + np.log(total), derivative


SMALLEST, LARGEST = -15.0, 4.0  # bounds of a term's log size at the anchor, from the log of the mean loss
_VANISHES = 5.0  # a log size this close to its lower bound is a term of zero


@dataclass(frozen=True)
class PowerSum:
    """The declaration of a law L = sum_t size_t exp(sum_qv exponent_q directions[t, q, v] x_v).

    Attributes:
        coordinates: columns -> x, the logarithms that terms depend on, [v, n].
        sizes: public name of each term's size -> the term in words; the first term is the constant.
        exponents: public names.
        directions: how exponent q tilts term t along x_v, [t, q, v].
        slopes: exponents to start from.
        steepest: upper bound of the exponents.
    """

    coordinates: Callable[[Any], Array]
    sizes: Mapping[str, str]
    exponents: tuple[str, ...]
    directions: Array
    slopes: tuple[float, ...]
    steepest: float

    def build(
        self, runs: Runs, delta: float, log_residual: bool = True, groups: Sequence[str] = (),
        undetermined: str | None = None,
    ) -> Curve:  # fmt: skip
        """Build the curve over these runs, for the error of the loss or (`log_residual`) of its logarithm.

        Each of `groups`, values of column arch, has sizes of its own, and all share the exponents.
        """
        loss = runs["loss"]
        middle = self.coordinates(runs).mean(axis=1, keepdims=True)
        terms, q = len(self.sizes), len(self.exponents)
        count = max(len(groups), 1)

        def lines(columns: Mapping[str, Array] | Runs) -> Array:
            at = self.coordinates(columns) - middle
            slopes = np.zeros((terms, terms * count + q, at.shape[1]))
            for g in range(count):
                for term in range(terms):
                    slopes[term, term * count + g] = columns["arch"] == groups[g] if groups else 1.0
            slopes[:, -q:] = self.directions @ at
            return slopes

        def public(theta: Array) -> dict[str, Array]:
            shift = theta[:, -q:] @ (self.directions @ middle)[:, :, 0].T  # from the anchor to x = 0, [k, t]
            with np.errstate(over="ignore"):
                size = np.exp(theta[:, :-q] - np.repeat(shift, count, axis=1))
            names = list(self.sizes)
            values = {f"{name}[{group}]" if groups else name: size[:, i * count + g]
                      for g, group in enumerate(groups or [""]) for i, name in enumerate(names)}  # fmt: skip
            return values | {name: theta[:, i - q] for i, name in enumerate(self.exponents)}

        fitted = lines(runs)

        def predict(theta: Array, points: Any = slice(None), slopes: Array = fitted, log: bool = log_residual) -> Array:
            value = np.logaddexp.reduce(np.matmul(theta, slopes[:, :, points]), axis=0)  # of [t, k, n']
            return value if log else np.exp(value)

        def jacobian(theta: Array, points: Any = slice(None)) -> tuple[Array, Array]:
            value, derivative = log_sum(fitted[:, :, points], theta)
            loss = np.exp(value)
            return (value, derivative) if log_residual else (loss, derivative * loss[:, None, :])

        sizes, level = terms * count, float(np.log(loss.mean()))
        lower, upper = (
            np.array([level + size] * sizes + [steep] * q)
            for size, steep in ((SMALLEST, 0.0), (LARGEST, self.steepest))
        )
        target = np.log(loss) if log_residual else loss
        words = "half the squared error" if math.isinf(delta) else "Huber"
        return Curve(
            Problem(predict, jacobian, target, delta, lower, upper), self._starts(loss, count), public,
            lambda theta, columns: predict(theta, slopes=lines(columns), log=False), loss,
            f"{words} of {'log loss' if log_residual else 'loss'}, summed over points", log_residual, undetermined,
            self._tested(groups),
        )  # fmt: skip

    def _tested(self, groups: Sequence[str]) -> dict[int, Tested]:
        """Return the constants and exponents by their coordinates; without an exponent its terms have no size."""
        constant, *terms = ([f"{name}[{group}]" if groups else name for group in groups or [""]] for name in self.sizes)
        tested = {i: Tested(name, log=True) for i, name in enumerate(constant)}
        first = len(self.sizes) * len(constant)
        for q, exponent in enumerate(self.exponents):
            tilted = [terms[t - 1] for t in range(1, len(self.sizes)) if self.directions[t, q].any()]
            names = tuple(name for term in tilted for name in term)
            tested[first + q] = Tested(exponent, False, (*names, *constant))
        return tested

    def _starts(self, loss: Array, groups: int) -> Array:
        """Return starts: sizes at the anchor, equal for all groups, and exponents; [k, p].

        The constant starts at parts of the smallest loss, the others at parts of the range of the loss.
        """
        span = max(float(np.ptp(loss)), 1e-3 * float(loss.min()))
        floor = [float(np.log(loss.min() * part)) for part in (0.2, 0.4, 0.6, 0.8, 0.95)]
        term = [float(np.log(span * part)) for part in (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)]
        terms = len(self.sizes)
        grid = np.array(list(product(floor, *[term] * (terms - 1), *[self.slopes] * len(self.exponents))))
        return np.concatenate([np.repeat(grid[:, :terms], groups, axis=1), grid[:, terms:]], axis=1)

    def warnings(self, fitted: CurveFit, groups: Sequence[str] = ()) -> list[str]:
        """Warn of terms that the fit drives to zero, and of exponents that end at a bound."""
        terms = [f"{words} of {group}" if group else words for words in self.sizes.values() for group in groups or [""]]
        return [
            f"not identified: the fit drives the {words} to zero; these data cannot measure it"
            for i, words in enumerate(terms)
            if self.vanishes(fitted.optimum.theta, fitted.curve.problem, i)
        ] + fitted.at_bounds({len(terms) + i: name for i, name in enumerate(self.exponents)})

    def vanishes(self, theta: Array, problem: Problem, size: int) -> bool:
        """Return whether the term of this log size is as good as zero at coordinates [p]."""
        return bool(theta[size] < problem.lower[size] + _VANISHES)


SLOPES = (0.1, 0.3, 0.5, 0.8, 1.5)
