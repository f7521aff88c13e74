"""Finding the best parameters of a curve: screening of many starts, damped Newton on the best, a second route.

The objective is the sum over points of Huber's function of the residual (Huber 1964, eq. 2.1): r^2 / 2 up to
`delta`, then delta (|r| - delta / 2); delta = inf is least squares. Everything works on a batch of parameter
vectors at once, each with its own point weights, so that bootstrap replicates cost no Python loop.

Shapes: k parameter vectors, n points, p parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts are imported at their first use
from numpy.typing import NDArray
from scipy.special import huber

Array = NDArray[np.float64]

SAME = 1e-6  # two objectives that differ by less than this, relative, are the same optimum
_SCREEN_POINTS = 96
_REFINED = 24
_AT_ONCE = 8_000  # points times parameter vectors whose derivatives stay in cache
_FEWEST_POINTS = 256  # of a block
_FEWEST_VECTORS = 16  # refined together
_THINNED = 4096  # points that a global search works on; its best are refined on all


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


@dataclass(frozen=True)
class Optimum:
    """The best parameters found, and how sure the search is of them."""

    theta: Array  # [p]
    objective: float
    starts: int
    refined: int
    at_optimum: int
    second_route: float

    def describe(self) -> dict[str, float | int | str]:
        """Return how the optimum was found, as plain values."""
        relative = (self.second_route - self.objective) / max(abs(self.objective), 1e-15)
        return {
            "starts": self.starts,
            "starts_refined": self.refined,
            "starts_at_optimum": self.at_optimum,
            "second_route": "L-BFGS-B from other starts, analytic gradient",
            "second_route_objective": self.second_route,
            "second_route_relative_difference": relative,
        }


def objective(problem: Problem, theta: Array, weights: Array | None = None) -> Array:
    """Sum Huber's function over points for each parameter vector; theta [k, p], weights [k, n] -> [k]."""
    return _total(problem.predict(theta, slice(None)) - problem.target, weights, problem.delta)


def _total(residual: Array, weights: Array | None, delta: float) -> Array:
    loss = huber(delta, residual)
    return np.asarray((loss if weights is None else loss * weights).sum(axis=1))


def gradient(problem: Problem, theta: Array) -> tuple[Array, Array]:
    """Compute the objective [k] and its gradient [k, p]."""
    value, jacobian = problem.jacobian(theta)
    residual = value - problem.target
    slope = np.clip(residual, -problem.delta, problem.delta)
    return huber(problem.delta, residual).sum(axis=1), np.einsum("kpn,kn->kp", jacobian, slope)


def screen(problem: Problem, starts: Array, keep: int) -> Array:
    """Return the `keep` starts of lowest objective on at most 96 evenly spread points; starts [k, p] -> [keep, p]."""
    n = len(problem.target)
    points = np.unique(np.linspace(0, n - 1, min(n, _SCREEN_POINTS)).round().astype(np.intp))
    target = problem.target[points]
    with np.errstate(all="ignore"):
        parts = np.array_split(starts, 1 + len(starts) // 512)
        score = np.concatenate([np.abs(problem.predict(part, points) - target).sum(axis=1) for part in parts])
    score[~np.isfinite(score)] = np.inf
    return starts[np.argsort(score, kind="stable")[:keep]]


def thin(problem: Problem) -> Problem:
    """Return the problem on at most 4,096 points, drawn at random without replacement; a smaller one as it is."""
    n = len(problem.target)
    if n <= _THINNED:
        return problem
    chosen = np.sort(np.random.default_rng(n).choice(n, _THINNED, replace=False))

    def predict(theta: Array, points: slice | NDArray[np.intp]) -> Array:
        return problem.predict(theta, chosen[points])

    def jacobian(theta: Array, points: slice | NDArray[np.intp] = slice(None)) -> tuple[Array, Array]:
        return problem.jacobian(theta, chosen[points])

    return replace(problem, predict=predict, jacobian=jacobian, target=problem.target[chosen])


def quick_search(problem: Problem, starts: Array) -> Array:
    """Search the best parameters [p] from fewer starts and by one route, for the many side fits."""
    starts = np.clip(starts[:: 1 + len(starts) // 1000], problem.lower, problem.upper)
    part = thin(problem)
    theta, value = refine(part, screen(part, starts, 8), iterations=60)
    best = theta[int(np.argmin(value))]
    return best if part is problem else refine(problem, best[None], iterations=60, smooth=False)[0][0]


def search(problem: Problem, starts: Array, seed: int = 0) -> Optimum:
    """Search globally: screen `starts` [k, p], refine the best, check the result by a second route.

    With many points both routes run on a part of them (`thin`), and end on all.
    """
    starts = np.clip(starts, problem.lower, problem.upper)
    part = thin(problem)
    best = screen(part, starts, _REFINED)
    theta, value = refine(part, best, iterations=80)
    order = np.argsort(value)
    theta, value = theta[order], value[order]
    polished, polished_value = refine(problem, theta[:3], iterations=300, smooth=False)
    winner = int(np.argmin(polished_value))
    found, lowest = polished[winner], float(polished_value[winner])

    other, other_value = second_route(problem, seed, lowest)
    if other_value < lowest * (1 - 1e-9):
        better, better_value = refine(problem, other[None], iterations=300, smooth=False)
        found, lowest = better[0], float(better_value[0])
    rest = lowest if part is problem else float(value[0])
    at_optimum = sum(
        int((some <= least * (1 + SAME) + 1e-300).sum())
        for some, least in ((polished_value, lowest), (value[3:], rest))
    )
    return Optimum(found, lowest, len(starts), len(best), at_optimum, other_value)


def second_route(problem: Problem, seed: int, sought: float) -> tuple[Array, float]:
    """Run L-BFGS-B from a random start of its own, and from another where that does not reach the objective `sought`.

    It shares nothing with `refine` but the objective.
    """
    rng = np.random.default_rng([seed, 2])
    draws = rng.uniform(problem.lower, problem.upper, (2000, len(problem.lower)))
    best, lowest = draws[0], math.inf
    span = problem.upper - problem.lower
    part = thin(problem)
    factors = (64.0, 8.0, 1.0) if math.isfinite(problem.delta) else (1.0,)
    stages = [replace(part, delta=factor * problem.delta) for factor in factors]
    stages += [] if part is problem else [problem]
    for start in screen(part, draws, 2):
        for stage in stages:
            unit = max(abs(float(objective(stage, start[None])[0])), 1e-300)

            def scaled(x: Array, stage: Problem = stage, unit: float = unit) -> tuple[float, Array]:
                value, slope = gradient(stage, (problem.lower + span * x)[None])
                return float(value[0]) / unit, slope[0] * span / unit

            result = scipy.optimize.minimize(
                scaled, (start - problem.lower) / span, jac=True, method="L-BFGS-B",
                bounds=[(0.0, 1.0)] * len(start), options={"maxiter": 400, "maxcor": 20, "ftol": 1e-13, "gtol": 1e-10},
            )  # fmt: skip
            start = np.clip(problem.lower + span * result.x, problem.lower, problem.upper)
        value = float(objective(problem, start[None])[0])
        if value < lowest:
            best, lowest = start, value
        if lowest <= sought * (1 + SAME):
            break
    return best, lowest


def refine(
    problem: Problem, starts: Array, weights: Array | None = None, iterations: int = 60, tolerance: float = 1e-13,
    smooth: bool = True, held: NDArray[np.bool_] | None = None,
) -> tuple[Array, Array]:  # fmt: skip
    """Run damped semismooth Newton from each start at once; return parameters [k, p] and objectives [k].

    Huber's function with a small delta is nearly the absolute value, on which Newton steps stall. So delta is
    lowered in stages (`smooth`), each started where the last one ended, after Madsen and Nielsen (1993, "A finite
    smoothing algorithm for linear l1 estimation"). Damping is measured by the matrix of iteratively reweighted least
    squares, which keeps the steps independent of how the curve is parametrised.

    Args:
        starts: [k, p], inside the bounds.
        weights: of the points for each start, [k, n]; None means 1.
        iterations: at most, in the last stage.
        tolerance: relative decrease below which a start counts as settled.
        held: coordinates of each start that stay where they are, [k, p]; None means none.
    """
    together = max(_FEWEST_VECTORS, _AT_ONCE // len(problem.target))
    if len(starts) > together:
        parts = [
            refine(problem, starts[part], _rows(weights, part), iterations, tolerance, smooth, _rows(held, part))
            for part in np.split(np.arange(len(starts)), range(together, len(starts), together))
        ]
        return np.concatenate([theta for theta, _ in parts]), np.concatenate([value for _, value in parts])
    theta = starts.copy()
    stages = [64.0, 16.0, 4.0] if smooth and math.isfinite(problem.delta) else []
    for factor in stages:
        theta, _ = _newton(problem, theta, weights, factor * problem.delta, 10, 1e-4, held)
    return _newton(problem, theta, weights, problem.delta, iterations, tolerance, held)


def _rows(values: Any, rows: Any) -> Any:
    return None if values is None else values[rows]


def _newton(
    problem: Problem, theta: Array, weights: Array | None, delta: float, iterations: int, tolerance: float,
    held: NDArray[np.bool_] | None,
) -> tuple[Array, Array]:  # fmt: skip
    k = len(theta)
    damping = np.full(k, 1e-2)
    active = np.arange(k)
    settled_steps = np.zeros(k, dtype=int)
    here = _sums(problem, theta, weights, delta)
    result, final = theta.copy(), here[0].copy()
    for _ in range(iterations):
        step = _step(problem, theta, damping, _rows(held, active), *here[1:])
        trial = np.clip(theta + step, problem.lower, problem.upper)
        there = _sums(problem, trial, _rows(weights, active), delta)
        better, settled = there[0] < here[0], here[0] - there[0] < tolerance * here[0]
        settled_steps = np.where(settled, settled_steps + 1, 0)
        theta = np.where(better[:, None], trial, theta)
        for old, new in zip(here, there, strict=True):
            old[better] = new[better]
        damping = np.clip(np.where(better, damping / 6, damping * 8), 1e-9, 1e12)
        result[active], final[active] = theta, here[0]
        going = ~((better & (settled_steps >= 2)) | (settled_steps >= 6))
        if not going.any():
            break
        if not going.all():
            theta, damping = theta[going], damping[going]
            settled_steps, active = settled_steps[going], active[going]
            here = tuple(part[going] for part in here)
    return result, final


def _sums(problem: Problem, theta: Array, weights: Array | None, delta: float) -> tuple[Array, ...]:
    """Sum over the points, in blocks that stay in cache, all that a step needs to know of them.

    Returns the objectives [k] (infinite where they are not finite), their slopes [k, p], the matrices of the points
    inside the threshold [k, p, p], and those of iteratively reweighted least squares [k, p, p].
    """
    k, p = theta.shape
    n = len(problem.target)
    cost, slope, inner, outer = (np.zeros((k, *shape)) for shape in ((), (p,), (p, p), (p, p)))
    block = max(_AT_ONCE // k, _FEWEST_POINTS)
    with np.errstate(all="ignore"):
        for points in (slice(first, min(first + block, n)) for first in range(0, n, block)):
            value, jacobian = problem.jacobian(theta, points)  # [k, m], [k, p, m]
            residual = value - problem.target[points]
            part = None if weights is None else weights[:, points]
            cost += _total(residual, part, delta)
            size = np.abs(residual)
            inside = (size <= delta).astype(float)
            reweight = np.ones_like(size) if math.isinf(delta) else delta / np.maximum(size, delta)
            if part is not None:
                inside, reweight = inside * part, reweight * part
            across = jacobian.transpose(0, 2, 1)
            outer += np.matmul(jacobian * reweight[:, None], across)
            inner += np.matmul(jacobian * inside[:, None], across)
            slope += np.matmul(jacobian, (reweight * residual)[:, :, None])[:, :, 0]
    return np.nan_to_num(cost, nan=math.inf), slope, inner, outer


def _step(
    problem: Problem, theta: Array, damping: Array, held: NDArray[np.bool_] | None, slope: Array, inside: Array,
    reweighted: Array,
) -> Array:  # fmt: skip
    stiff = np.einsum("kpp->kp", reweighted)
    stiff = damping[:, None] * np.maximum(stiff, 1e-4 * stiff.max(axis=1, keepdims=True))
    blocked = ((theta <= problem.lower) & (slope > 0)) | ((theta >= problem.upper) & (slope < 0))
    blocked = blocked if held is None else blocked | held
    free = (~blocked).astype(float)
    hessian = (inside + damping[:, None, None] * reweighted) * free[:, :, None] * free[:, None, :]
    ridge = np.maximum(stiff, 1e-300) * free + (1 - free)
    hessian[:, np.arange(theta.shape[1]), np.arange(theta.shape[1])] += ridge
    unit = 1 / np.sqrt(np.einsum("kpp->kp", hessian))  # Jacobi scaling: the system keeps its digits
    system = hessian * unit[:, :, None] * unit[:, None, :]
    try:
        solved = np.linalg.solve(system, (slope * free * unit)[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        eye = np.eye(theta.shape[1])
        solved = np.linalg.solve(system + 1e-8 * eye, (slope * free * unit)[:, :, None])[:, :, 0]
    step = -solved * unit
    longest = 0.5 * (problem.upper - problem.lower)
    return np.clip(np.nan_to_num(step), -longest, longest)
