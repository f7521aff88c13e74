"""Fitting one curve to runs: its search and its intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.newton import refine
from hybridtron.laws.fitting.optimize.problem import Array, Problem
from hybridtron.laws.fitting.optimize.search import Optimum, search
from hybridtron.laws.fitting.uncertainty import bootstrap
from hybridtron.laws.fitting.uncertainty.identifiability import Tested, free_parameters, weak_parameters
from hybridtron.laws.law import Settings


@dataclass(frozen=True)
class Curve:
    """A law's curve over the rows of some runs.

    Attributes:
        problem: curve, data and bounds for the search.
        starts: parameter vectors to screen, [k, p].
        public: fitted coordinates [k, p] -> public parameters, each [k].
        predict: fitted coordinates [k, p] and columns [m] -> the predicted quantity in its own units, [k, m].
        observed: the same quantity as measured, [n].
        objective: what the objective sums, in words.
        log_target: whether the curve is fitted to the logarithm of the quantity.
        undetermined: why rows such as these cannot tell the parameters apart, or None.
        tested: coordinates that get no interval where the data hardly determine them.
    """

    problem: Problem
    starts: Array
    public: Callable[[Array], dict[str, Array]]
    predict: Callable[[Array, Mapping[str, Array]], Array]
    observed: Array
    objective: str
    log_target: bool
    undetermined: str | None = None
    tested: Mapping[int, Tested] = field(default_factory=dict)


@dataclass(frozen=True)
class CurveFit:
    """A fitted curve with its resampled fits; `samples` is None when intervals were refused or not asked for."""

    curve: Curve
    optimum: Optimum
    parameters: dict[str, float]
    samples: Array | None  # [count, p]
    intervals: dict[str, list[float]] | None
    n_groups: int
    warnings: list[str]
    weak: frozenset[str] = frozenset()  # parameters without an interval, for the data hardly determine them

    def interval(self, values: Callable[[Array], Array]) -> list[float] | None:
        """Return the interval of a quantity computed from coordinates [k, p] -> [k]."""
        if self.samples is None:
            return None
        return bootstrap.interval(values(self.samples), self.n_groups, self.samples.shape[1])

    def estimate(self, name: str, values: Callable[[Array], Array]) -> dict[str, Any]:
        """Return a quantity computed from coordinates [k, p] -> [k] under its name, and its interval beside it."""
        best = float(values(self.optimum.theta[None])[0])
        return {name: best, f"{name}_interval": self.interval(values)}

    def estimate_at(self, name: str, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the curve predicts at a point of columns under its name, and its interval beside it."""
        at = {column: np.array([value]) for column, value in point.items()}
        return self.estimate(name, lambda theta: self.curve.predict(theta, at)[:, 0])

    def band(self, values: Callable[[Array], Array]) -> dict[str, Any]:
        """Return the 95 % band of a curve computed from coordinates [k, p] -> [k, m]; empty without samples."""
        if self.samples is None:
            return {}
        with np.errstate(all="ignore"):
            low, high = np.nanquantile(values(self.samples), [0.025, 0.975], axis=0)
        return {"low": low, "high": high}

    def predict(self, columns: Mapping[str, Any]) -> Array:
        """Compute the curve at columns [m], in the units of what was measured; [m]."""
        return self.curve.predict(self.optimum.theta[None], columns)[0]

    def at_bounds(self, names: Mapping[int, str]) -> list[str]:
        """Warn of the coordinates, by their numbers, that end at a bound."""
        theta, lower, upper = self.optimum.theta, self.curve.problem.lower, self.curve.problem.upper
        margin = 1e-6 * (upper - lower)
        return [
            f"not identified: {name} ends at its bound {self.parameters[name]:g}"
            for i, name in names.items()
            if theta[i] <= lower[i] + margin[i] or theta[i] >= upper[i] - margin[i]
        ]

    @property
    def residual(self) -> Array:
        """Fitted less measured values, as the objective sees them, [n]."""
        problem = self.curve.problem
        return problem.predict(self.optimum.theta[None], slice(None))[0] - problem.target

    @property
    def noise(self) -> float:
        """Robust standard deviation of the residuals."""
        return robust_deviation(self.residual)


Build = Callable[[Runs, float], Curve]
_REFITTED = 400  # iterations at most: in a long curved valley replicates stopped earlier are too close to the centre
_ROUNDING = 1e-20  # squared relative residual that is nothing but rounding


def fit_curve(build: Build, runs: Runs, settings: Settings, delta: float) -> CurveFit:
    """Search the optimum of the curve `build(runs, delta)` and resample it."""
    curve = build(runs, delta)
    optimum = search(curve.problem, curve.starts, settings.seed)
    labels = bootstrap.group_labels(runs, settings.group)
    n_groups = int(labels.max()) + 1
    p = len(optimum.theta)
    warnings = []
    exact = len(runs) * _ROUNDING * max(float(np.abs(curve.problem.target).max()), 1.0) ** 2
    if abs(optimum.second_route - optimum.objective) > 1e-3 * optimum.objective + exact:
        warnings.append(
            f"search: the second route ended at objective {optimum.second_route:.6g} against {optimum.objective:.6g}; "
            "the surface has several minima"
        )
    samples = None
    reason = bootstrap.refusal(n_groups, p) or _undetermined(curve, optimum.theta)
    if reason:
        warnings.append(reason)
    if settings.bootstrap and not reason:
        samples = _resample(curve.problem, optimum.theta, labels, settings)
    intervals, weak = None, frozenset[str]()
    if samples is not None:
        smooth = _smooth(curve.problem, optimum.theta)
        weak, words = weak_parameters(smooth, optimum.theta, labels, curve.tested)
        warnings += words
        values = {name: value for name, value in curve.public(samples).items() if name not in weak}
        intervals = {name: bootstrap.interval(value, n_groups, p) for name, value in values.items()} or None
    parameters = {name: float(value[0]) for name, value in curve.public(optimum.theta[None]).items()}
    return CurveFit(curve, optimum, parameters, samples, intervals, n_groups, warnings, weak)


def _undetermined(curve: Curve, theta: Array) -> str | None:
    """Return why there are no intervals although there are runs enough."""
    why = curve.undetermined
    if why is None and (free := free_parameters(curve.problem.jacobian(theta[None])[1][0], theta, curve.public)):
        why = f"these rows leave {', '.join(free)} free to trade against each other"
    return None if why is None else f"not identified: no intervals, {why}"


def robust_deviation(residual: Array) -> float:
    """Estimate the standard deviation of residuals [n] by the median of their distances from their median."""
    return float(1.4826 * np.median(np.abs(residual - np.median(residual))))


def _resample(problem: Problem, theta: Array, labels: Any, settings: Settings) -> Array:
    """Resample the fit: coordinates [count, p].

    A threshold far below the noise makes the fit a median, whose bootstrap overstates the spread of small samples
    (Hall and Martin 1988, "Exact convergence rate of bootstrap quantile variance estimator"). The refits therefore use
    at least half of the noise as threshold, and their deviations from the fit under that threshold are added to
    the estimate; what a refit left at a bound stays there, for the bound held it and no deviation was seen.
    """
    smooth = _smooth(problem, theta)
    centre = refine(smooth, theta[None], iterations=60)[0]

    def refit(weights: Array) -> Array:
        starts = np.repeat(centre, len(weights), axis=0)
        return refine(smooth, starts, weights, iterations=_REFITTED, tolerance=1e-9, smooth=False)[0]

    drawn = bootstrap.resample(labels, settings.bootstrap, settings.seed, refit, settings.jobs)
    at_bound = (drawn <= problem.lower) | (drawn >= problem.upper)
    return np.where(at_bound, drawn, np.clip(drawn + theta - centre, problem.lower, problem.upper))


def _smooth(problem: Problem, theta: Array) -> Problem:
    """Return the problem with a threshold of at least half of the noise at `theta`."""
    noise = robust_deviation(problem.predict(theta[None], slice(None))[0] - problem.target)
    return replace(problem, delta=max(problem.delta, noise / 2))
