"""Intervals of a line through loss minima by the delta method: the noise of the losses carried to the line.

The minimum of a parabola moves with each loss by a known derivative, and the line is linear in the minima. The variance
of the noise is pooled over all budgets, with Student's t. Where the budgets' variances look unequal it is also
estimated for each budget by itself, with the degrees of freedom of Satterthwaite (1946), and where they seem to rise or
fall with the budget, by that trend (a gamma regression of the variances, logarithmic link). The widest interval counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc, stdtrit

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.minima.loss_minima import LossMinimum, minimum_derivatives
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.fitting.uncertainty.bootstrap import LEVEL

_UNEQUAL = 0.3  # p of equal variances below which each budget also has its own
Spread = Callable[[Array], list[float]]  # weights of exponent and log factor [2] -> lower and upper deviation


def line_spread(
    runs: Runs, column: str, kept: Sequence[LossMinimum], labels: NDArray[np.intp], freedom: int, grouped: bool
) -> Spread:
    """Return the function that gives the interval of the line through the minima of a column.

    Args:
        kept: the minima, [K].
        labels: run of each row of the table.
        freedom: degrees of freedom of the pooled variance.
        grouped: whether several rows may belong to one run.
    """
    log_c = np.log([minimum.budget for minimum in kept])
    centred = log_c - log_c.mean()
    exponent = centred / (centred**2).sum()
    line = np.stack([exponent, 1 / len(kept) - exponent * log_c.mean()])  # by log x of the minima, [2, K]
    derivatives = [minimum_derivatives(minimum, runs[column]) for minimum in kept]
    moved = np.array([slope @ slope for slope in derivatives])  # a minimum by unit noise, squared, [K]
    squares = np.array([(minimum.residual**2).sum() for minimum in kept])
    within = np.array([len(minimum.rows) - 3 for minimum in kept], dtype=float)  # degrees of freedom of each budget
    design = np.stack([np.ones_like(log_c), centred], axis=1)
    equal = equal_variances(squares, within)
    trend, covariance, p = variance_trend(squares, within, design)

    def spread(weights: Array) -> list[float]:
        share = (weights @ line) ** 2 * moved  # [K]
        own = share * squares / within
        pooled = share.sum() * squares.sum() / within.sum()
        variances: list[tuple[float, float]] = [(pooled, freedom)]
        if equal < _UNEQUAL:
            satterthwaite = own.sum() ** 2 / max((own**2 / within).sum(), 1e-300)
            variances.append((own.sum(), min(max(satterthwaite, len(kept)), freedom)))
        if p < _UNEQUAL:
            parts = share * trend
            about = parts @ design / parts.sum()  # of the logarithm of the sum
            variances.append((parts.sum(), min(2 / float(about @ covariance @ about), freedom)))
        if grouped:
            variances.append((_variance_of_runs(weights @ line, derivatives, kept, labels), freedom))
        half = max(float(stdtrit(t, 0.5 + LEVEL / 2) * np.sqrt(variance)) for variance, t in variances)
        return [-half, half]

    return spread


def _variance_of_runs(
    weights: Array, derivatives: Sequence[Array], kept: Sequence[LossMinimum], labels: NDArray[np.intp]
) -> float:
    """Return the variance of weights @ log x of the minima, [K], where the noise of the rows of a run is one draw."""
    moved = np.zeros(int(labels.max()) + 1)
    for weight, slope, minimum in zip(weights, derivatives, kept, strict=True):
        np.add.at(moved, labels[minimum.rows], weight * slope * minimum.noise)
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
