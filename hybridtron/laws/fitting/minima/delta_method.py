"""Intervals of a line through loss minima by the delta method: the noise of the losses carried to the line.

The minimum of a parabola moves with each loss by a known derivative, and the line is linear in the minima. The variance
of the noise is pooled over all budgets, with Student's t. Where the budgets' variances look unequal it is also
estimated for each budget by itself, with the degrees of freedom of Satterthwaite (1946), and where they seem to rise or
fall with the budget, by that trend (a gamma regression of the variances, logarithmic link). The widest interval counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, stdtrit

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.loss_minima import LossMinimum, minimum_derivatives
from hybridtron.laws.fitting.optimize.problem import Array

LEVEL = 0.95
_UNEQUAL = 0.3  # p of equal variances below which each budget also has its own
Spread = Callable[[Array], list[float]]  # weights of exponent and log factor [2] -> lower and upper deviation


@dataclass(frozen=True)
class LineNoise:
    """The noise of a line through minima.

    Attributes:
        minima: the minima that the line goes through, [K].
        derivatives: of log x at each minimum by the losses of its rows, [K] arrays.
        line: derivatives of the exponent and of the log factor by log x of the minima, [2, K].
        labels: run of each row of the table.
        freedom: degrees of freedom of the pooled variance.
        grouped: whether several rows may belong to one run.
    """

    minima: Sequence[LossMinimum]
    derivatives: list[Array]
    line: Array
    labels: NDArray[np.intp]
    freedom: int
    grouped: bool

    def spread(self, weights: Array) -> list[float]:
        """Return the 95 % interval of weights @ (exponent, log factor), less its estimate."""
        squares, freedom, moved, equal, (trend, covariance, p) = self._within_budgets
        share = (weights @ self.line) ** 2 * moved  # [K]
        own = share * squares / freedom
        pooled = share.sum() * squares.sum() / freedom.sum()
        satterthwaite = own.sum() ** 2 / max((own**2 / freedom).sum(), 1e-300)
        satterthwaite = min(max(satterthwaite, len(self.minima)), self.freedom)
        variances: list[tuple[float, float]] = [(pooled, self.freedom)]
        if equal < _UNEQUAL:
            variances.append((own.sum(), satterthwaite))
        if p < _UNEQUAL:
            parts = share * trend
            about = parts @ self._design() / parts.sum()  # of the logarithm of the sum
            variances.append((parts.sum(), min(2 / float(about @ covariance @ about), self.freedom)))
        if self.grouped:
            variances.append((self._of_runs(weights), self.freedom))
        half = max(float(stdtrit(t, 0.5 + LEVEL / 2) * np.sqrt(variance)) for variance, t in variances)
        return [-half, half]

    @cached_property
    def _within_budgets(self) -> tuple[Array, Array, Array, float, tuple[Array, Array, float]]:
        """Return what every interval needs of the budgets: squares and their freedom, what a minimum moves with unit
        noise, squared, each [K]; the p of equal variances; their trend."""
        squares = np.array([(one.residual**2).sum() for one in self.minima])
        freedom = np.array([len(one.rows) - 3 for one in self.minima], dtype=float)
        moved = np.array([slope @ slope for slope in self.derivatives])
        trend = variance_trend(squares, freedom, self._design())
        return squares, freedom, moved, equal_variances(squares, freedom), trend

    def _design(self) -> Array:
        """Return 1 and the logarithm of each budget about its mean, [K, 2]."""
        log_c = np.log([one.budget for one in self.minima])
        return np.stack([np.ones_like(log_c), log_c - log_c.mean()], axis=1)

    def _of_runs(self, weights: Array) -> float:
        """Return the variance where the noise of the rows of one run is one draw."""
        moved = np.zeros(int(self.labels.max()) + 1)
        for weight, slope, minimum in zip(weights @ self.line, self.derivatives, self.minima, strict=True):
            np.add.at(moved, self.labels[minimum.rows], weight * slope * minimum.noise)
        return float((moved**2).sum())


def equal_variances(squares: Array, freedom: Array) -> float:
    """Return the p of equal variances by Bartlett's test (1937); sums of squares [K] and their degrees of freedom."""
    variances, total, more = np.maximum(squares / freedom, 1e-300), freedom.sum(), len(freedom) - 1
    statistic = total * np.log(np.maximum(squares.sum() / total, 1e-300)) - freedom @ np.log(variances)
    return float(chdtrc(more, max(statistic, 0.0) / (1 + ((1 / freedom).sum() - 1 / total) / (3 * more))))


def variance_trend(squares: Array, freedom: Array, design: Array) -> tuple[Array, Array, float]:
    """Fit variances whose logarithms are design @ coefficients, by scoring (gamma errors, logarithmic link).

    Args:
        squares, freedom: sums of squares and their degrees of freedom, [K].
        design: [K, q], its first column ones.

    Returns the variances [K], the covariance of the coefficients [q, q], and the p of equal variances.
    """
    measured = np.maximum(squares / freedom, 1e-300)
    covariance = np.asarray(np.linalg.inv(design.T @ (design * freedom[:, None] / 2)), dtype=np.float64)
    level = np.full(len(squares), np.log(squares.sum() / freedom.sum() + 1e-300))
    fitted = level
    for _ in range(25):
        change = np.clip(np.expm1(np.minimum(np.log(measured) - fitted, 20.0)), -1.0, 3.0)
        fitted = fitted + design @ (covariance @ (design.T @ (freedom / 2 * change)))
    ratio = freedom @ (level + measured / np.exp(level) - fitted - measured / np.exp(fitted))
    return np.asarray(np.exp(fitted)), covariance, float(chdtrc(design.shape[1] - 1, max(float(ratio), 0.0)))


def line_spread(
    runs: Runs, column: str, kept: Sequence[LossMinimum], labels: NDArray[np.intp], freedom: int, grouped: bool
) -> Spread:
    """Return the function that gives the interval of the line through the minima of a column."""
    log_c = np.log([minimum.budget for minimum in kept])
    slope = (log_c - log_c.mean()) / ((log_c - log_c.mean()) ** 2).sum()
    line = np.stack([slope, 1 / len(kept) - slope * log_c.mean()])
    derivatives = [minimum_derivatives(minimum, runs[column]) for minimum in kept]
    return LineNoise(kept, derivatives, line, labels, freedom, grouped).spread
