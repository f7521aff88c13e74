"""Fitting one curve to runs: search, intervals, held-out runs and the sensitivity that every curve law reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit, Series, Settings
from hybridtron.laws.families.sentences import moves, not_held_out, verdict
from hybridtron.laws.fitting import bootstrap
from hybridtron.laws.fitting.identified import Tested, free_parameters, weak_parameters
from hybridtron.laws.fitting.optimize import Array, Optimum, Problem, quick_search, refine, search
from hybridtron.laws.fitting.power import held_out
from hybridtron.reporting.numbers import plural


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

    def spread(self, values: Callable[[Array], Array]) -> list[float] | None:
        """Return the interval of a quantity computed from coordinates [k, p] -> [k]."""
        if self.samples is None:
            return None
        return bootstrap.interval(values(self.samples), self.n_groups, self.samples.shape[1])

    def estimate(self, name: str, values: Callable[[Array], Array]) -> dict[str, Any]:
        """Return a quantity computed from coordinates [k, p] -> [k] under its name, and its interval beside it."""
        best = float(values(self.optimum.theta[None])[0])
        return {name: best, f"{name}_interval": self.spread(values)}

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


OUTLIERS = (None, "column that flags outliers, to report how far the answer moves without them")
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
    the estimate.
    """
    smooth = _smooth(problem, theta)
    centre = refine(smooth, theta[None], iterations=60)[0]

    def refit(weights: Array) -> Array:
        starts = np.repeat(centre, len(weights), axis=0)
        return refine(smooth, starts, weights, iterations=_REFITTED, tolerance=1e-9, smooth=False)[0]

    drawn = bootstrap.resample(labels, settings.bootstrap, settings.seed, refit, settings.jobs)
    return np.clip(drawn + theta - centre, problem.lower, problem.upper)


def _smooth(problem: Problem, theta: Array) -> Problem:
    """Return the problem with a threshold of at least half of the noise at `theta`."""
    noise = robust_deviation(problem.predict(theta[None], slice(None))[0] - problem.target)
    return replace(problem, delta=max(problem.delta, noise / 2))


def _refit(build: Build, runs: Runs, delta: float) -> tuple[Curve, Array, dict[str, float]]:
    """Fit the curve without intervals, for the side fits: the curve, its coordinates [1, p] and its parameters."""
    curve = build(runs, delta)
    theta = quick_search(curve.problem, curve.starts)[None]
    return curve, theta, {name: float(value[0]) for name, value in curve.public(theta).items()}


def hold_out(
    build: Build, runs: Runs, settings: Settings, delta: float, size: Array, size_name: str
) -> dict[str, Any] | None:
    """Refit without the runs of the largest `size` [n], and compare prediction with measurement on them.

    Returns None when it was not asked for, or when too few runs would be left (two for each parameter).
    """
    labels = bootstrap.group_labels(runs, settings.group)
    n_groups = int(labels.max()) + 1
    largest = np.full(n_groups, -math.inf)
    np.maximum.at(largest, labels, size)
    count = settings.holdout if settings.holdout is not None else max(1, round(n_groups / 10))
    p = len(build(runs, delta).problem.lower)
    if count <= 0 or n_groups - count < 2 * p:
        return None
    out = np.isin(labels, np.argsort(largest, kind="stable")[-count:])
    held = runs.take(out)
    curve, theta, without = _refit(build, runs.take(~out), delta)
    if not curve.problem.jacobian(theta)[1][0].any(axis=1).all():
        return None  # a parameter, such as one of an architecture, on which the rest has no bearing
    ends = {"largest_fitted": float(size[~out].max()), "largest_held_out": float(size[out].max())}
    return held_out(
        count, size_name, curve.predict(theta, held.columns)[0], build(held, delta).observed,
        int(np.argmax(size[out])), held_out_rows=int(out.sum()), **ends, parameters_without=without,
    )  # fmt: skip


def sensitivity(
    build: Build, runs: Runs, settings: Settings, delta: float, fitted: CurveFit
) -> tuple[dict[str, Any], list[str]]:  # fmt: skip
    """Fit the parameters under other thresholds, without far points, and without rows flagged as outliers.

    Returns them with a warning for each filter under which a parameter leaves its interval (or moves by 10 % when there
    is none).
    """
    others = [math.inf, 0.1] if math.isinf(delta) else [delta * 10, delta / 10, math.inf]
    table: dict[str, Any] = {
        "delta": {f"{other:g}": _refit(build, runs, other)[2] for other in others if other != delta}
    }
    far = np.abs(fitted.residual) > 4 * max(fitted.noise, 1e-12)
    column, flagged = outlier_flags(runs, settings) or ("", np.zeros(len(runs), bool))
    rule = {"rule": "residual beyond 4 robust standard deviations", "lines": [int(line) for line in runs.lines[far]]}
    near = {name: [value - 0.1 * abs(value), value + 0.1 * abs(value)] for name, value in fitted.parameters.items()}
    warnings = []
    for key, one, several, out, about in (
        (
            "without_far_points",
            "row beyond 4 robust standard deviations",
            "rows beyond 4 robust standard deviations",
            far,
            rule,
        ),
        ("without_flagged", "flagged row", "flagged rows", flagged, {"column": column}),
    ):
        if not out.any() or (~out).sum() <= 2 * len(fitted.optimum.theta):
            continue
        parameters = _refit(build, runs.take(~out), delta)[2]
        table[key] = {**about, "rows": int(out.sum()), "parameters": parameters}
        if moved := moves(fitted.parameters, parameters, fitted.intervals or near):
            warnings.append(f"filter sensitivity: without {plural(int(out.sum()), one, several)}: " + ", ".join(moved))
    return table, warnings


def outlier_flags(runs: Runs, settings: Settings) -> tuple[str, np.ndarray] | None:
    """Return name and values [n] of the column that marks outliers: option `outliers`, or one named *outlier*."""
    name = settings.options.get("outliers")
    if name is None:
        name = next((column for column in runs.columns if "outlier" in column.lower()), None)
    if name is None:
        return None
    values = runs[name]
    if values.dtype == object:
        return name, np.array([str(value).strip().lower() in ("true", "1", "yes") for value in values])
    return name, values != 0


def complete_fit(
    law: str,
    build: Build,
    runs: Runs,
    settings: Settings,
    *,
    delta: float,
    size: Array,
    size_name: str,
    predict_point: Callable[[CurveFit, Mapping[str, float]], tuple[list[dict[str, Any]], list[str]]],
    curves: Callable[[CurveFit], list[Series]],
    check: Callable[[CurveFit], list[str]],
    facts: Callable[[CurveFit], dict[str, Any]] = lambda fitted: {},
    cross_check: Callable[[CurveFit], tuple[dict[str, Any], list[Series], list[str]]] = lambda fitted: ({}, [], []),
    template: str | None = None,
) -> Fit:
    """Fit everything that a curve law reports.

    Args:
        delta: Huber threshold.
        size: what "largest" means for the held-out runs, [n]; `size_name` is its name.
        predict_point: one point of `predict` -> its answers and its warnings.
        curves: what to plot.
        check: warnings of the law's own.
        facts: what the template of the verdict needs besides parameters, intervals and the extrapolation check.
        cross_check: entries of `cross_checks`, what to plot of them, and warnings.
        template: name of that template; by default the law's.

    Raises UserError where there are no more rows than parameters: then any number of curves goes through all of them.
    """
    if len(runs) <= (parameters := len(build(runs, delta).problem.lower)):
        raise UserError(
            f"{runs.source}: {plural(len(runs), 'row')}; expected more than the {parameters} parameters of {law}"
        )
    fitted = fit_curve(build, runs, settings, delta)
    table, moved = sensitivity(build, runs, settings, delta, fitted)
    crossed, more_curves, doubts = cross_check(fitted)
    warnings = fitted.warnings + moved + check(fitted) + doubts
    held = hold_out(build, runs, settings, delta, size, size_name)
    warnings += not_held_out(settings, held, plural(fitted.n_groups, "run"))
    predictions = []
    for point in settings.predict:
        entries, more = predict_point(fitted, point)
        predictions += entries
        warnings += more
    return Fit(
        parameters=fitted.parameters,
        objective=fitted.optimum.objective,
        n_points=len(runs),
        n_groups=fitted.n_groups,
        intervals=fitted.intervals,
        settings={"delta": delta, "objective": fitted.curve.objective},
        sensitivity=table,
        predictions=predictions,
        warnings=warnings,
        search=fitted.optimum.describe(),
        extrapolation=held,
        cross_checks=crossed,
        verdict=verdict(template or law, fitted.parameters, fitted.intervals, held=held, **facts(fitted)),
        curves=curves(fitted) + more_curves,
    )


def measured_against_predicted(fitted: CurveFit, quantity: str, labels: Array | None = None) -> list[Series]:
    """Return the panel that every curve law has: measured values against the fitted ones, and the line of equality.

    `labels`, [n], name the points of each colour.
    """
    value = fitted.curve.problem.target + fitted.residual
    predicted = np.exp(value) if fitted.curve.log_target else value
    observed = fitted.curve.observed
    names = [] if labels is None else list(dict.fromkeys(labels.tolist()))
    groups = {name: labels == name for name in names} or {"runs": np.ones(len(observed), bool)}
    ends = np.array([min(predicted.min(), observed.min()), max(predicted.max(), observed.max())])
    axes: dict[str, Any] = {"x_label": f"predicted {quantity}", "y_label": f"measured {quantity}", "x_log": False}
    return [
        *(
            Series("measured against predicted", label, "points", predicted[rows], observed[rows], **axes)
            for label, rows in groups.items()
        ),
        Series("measured against predicted", "equal", "line", ends, ends, **axes),
    ]
