"""Curves that are a constant and a sum of power laws, each the exponential of a straight line in fitted coordinates.

L = constant + sum_t exp(line_t), line_t = sum_j slopes[t, j] * theta_j (Hoffmann et al. 2022, 2203.15556, section 3.3).
A term's size enters as its logarithm, so no parameter spans decades and every term stays positive. The constant enters
as it is, from zero on: as a logarithm it would never arrive at zero, and its replicates would pile up far below.
Sizes are anchored at the geometric mean of the data, so that a term's size and its exponent are nearly independent of
each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.curves.curve import Curve, CurveFit
from hybridtron.laws.fitting.optimize.problem import Array, Problem, describe_objective
from hybridtron.laws.fitting.uncertainty.identifiability import Tested


def values(slopes: Array, theta: Array) -> Array:
    """Compute L: slopes [t, p, n], of which the first gives the constant, and theta [k, p] -> [k, n]."""
    terms = np.matmul(theta, slopes)  # [t, k, n]
    return np.asarray(terms[0] + np.exp(terms[1:]).sum(axis=0))


def values_and_derivatives(slopes: Array, theta: Array) -> tuple[Array, Array]:
    """Compute L and its derivatives: slopes [t, p, n], theta [k, p] -> [k, n] and [k, p, n]."""
    terms = np.matmul(theta, slopes)  # [t, k, n]
    np.exp(terms[1:], out=terms[1:])
    derivative = np.zeros((len(theta), *slopes.shape[1:]))
    for t, j in np.argwhere(slopes.any(axis=2)):
        derivative[:, j] += slopes[t, j] * terms[t] if t else slopes[t, j]
    return terms.sum(axis=0), derivative


SMALLEST, LARGEST = -15.0, 4.0  # bounds of a term's log size at the anchor, from the log of the mean loss
_VANISHES = 5.0  # a log size this close to its lower bound is a term of zero
_NOTHING = 1e-6  # of the largest loss: a constant below is zero


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
            size = theta[:, :-q].copy()
            with np.errstate(over="ignore"):
                size[:, count:] = np.exp(size[:, count:] - np.repeat(shift[:, 1:], count, axis=1))
            names = list(self.sizes)
            of_groups = {f"{name}[{group}]" if groups else name: size[:, i * count + g]
                         for g, group in enumerate(groups or [""]) for i, name in enumerate(names)}  # fmt: skip
            return of_groups | {name: theta[:, i - q] for i, name in enumerate(self.exponents)}

        fitted = lines(runs)

        def predict(theta: Array, points: Any = slice(None), slopes: Array = fitted, log: bool = log_residual) -> Array:
            value = values(slopes[:, :, points], theta)
            return np.log(value) if log else value

        def jacobian(theta: Array, points: Any = slice(None)) -> tuple[Array, Array]:
            value, derivative = values_and_derivatives(fitted[:, :, points], theta)
            return (np.log(value), derivative / value[:, None, :]) if log_residual else (value, derivative)

        sizes, level = (terms - 1) * count, float(np.log(loss.mean()))
        lower, upper = (
            np.array([constant] * count + [level + size] * sizes + [steep] * q)
            for constant, size, steep in ((0.0, SMALLEST, 0.0), (float(loss.max()), LARGEST, self.steepest))
        )
        target = np.log(loss) if log_residual else loss
        return Curve(
            Problem(predict, jacobian, target, delta, lower, upper), self._starts(loss, count), public,
            lambda theta, columns: predict(theta, slopes=lines(columns), log=False), loss,
            describe_objective(delta, "log loss" if log_residual else "loss"), log_residual, undetermined,
            self._tested(groups),
        )  # fmt: skip

    def _tested(self, groups: Sequence[str]) -> dict[int, Tested]:
        """Return the exponents by their coordinates; without one its terms have no size, and there is no constant."""
        constant, *terms = ([f"{name}[{group}]" if groups else name for group in groups or [""]] for name in self.sizes)
        tested = {}
        first = len(self.sizes) * len(constant)
        for q, exponent in enumerate(self.exponents):
            tilted = [terms[t - 1] for t in range(1, len(self.sizes)) if self.directions[t, q].any()]
            names = tuple(name for term in tilted for name in term)
            tested[first + q] = Tested(exponent, False, (*names, *constant))
        return tested

    def _starts(self, loss: Array, groups: int) -> Array:
        """Return starts: sizes at the anchor, equal for all groups, and exponents; [k, p].

        The constant starts at parts of the smallest loss, the others at logarithms of parts of the range of the loss.
        """
        span = max(float(np.ptp(loss)), 1e-3 * float(loss.min()))
        floor = [float(loss.min() * part) for part in (0.0, 0.3, 0.6, 0.8, 0.95)]
        term = [float(np.log(span * part)) for part in (0.01, 0.03, 0.1, 0.3, 1.0, 2.0)]
        terms = len(self.sizes)
        grid = np.array(list(product(floor, *[term] * (terms - 1), *[self.slopes] * len(self.exponents))))
        return np.concatenate([np.repeat(grid[:, :terms], groups, axis=1), grid[:, terms:]], axis=1)

    def warnings(self, fitted: CurveFit, groups: Sequence[str] = ()) -> list[str]:
        """Warn of constants that end at zero, of terms that the fit drives to zero, and of exponents at a bound."""
        words = [f"{of} of {group}" if group else of for of in self.sizes.values() for group in groups or [""]]
        count = max(len(groups), 1)
        return [
            f"not identified: the {of} ends at its bound of zero; these data show none"
            if i < count
            else f"not identified: the fit drives the {of} to zero; these data cannot measure it"
            for i, of in enumerate(words)
            if self.vanishes(fitted.optimum.theta, fitted.curve.problem, i)
        ] + fitted.at_bounds({len(words) + i: name for i, name in enumerate(self.exponents)})

    def vanishes(self, theta: Array, problem: Problem, size: int) -> bool:
        """Return whether the constant or term of this coordinate is as good as zero at coordinates [p]."""
        least = problem.lower[size]
        return bool(theta[size] < (least + _VANISHES if least else _NOTHING * problem.upper[size]))


SLOPES = (0.1, 0.3, 0.5, 0.8, 1.5)
