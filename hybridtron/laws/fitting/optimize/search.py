"""The search for the best parameters of a curve: screening of many starts, Newton on the best, a second route."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are imported at their first use
from numpy.typing import NDArray

from hybridtron.laws.fitting.optimize.newton import refine
from hybridtron.laws.fitting.optimize.problem import Array, Problem, gradient, objective

SAME = 1e-6  # two objectives that differ by less than this, relative, are the same optimum
_SCREEN_POINTS = 96
_REFINED = 24
_SUBSAMPLE = 4096  # points that a global search works on; its best are refined on all


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


def subsample(problem: Problem) -> Problem:
    """Return the problem on at most 4,096 points, drawn at random without replacement; a smaller one as it is."""
    n = len(problem.target)
    if n <= _SUBSAMPLE:
        return problem
    chosen = np.sort(np.random.default_rng(n).choice(n, _SUBSAMPLE, replace=False))

    def predict(theta: Array, points: slice | NDArray[np.intp]) -> Array:
        return problem.predict(theta, chosen[points])

    def jacobian(theta: Array, points: slice | NDArray[np.intp] = slice(None)) -> tuple[Array, Array]:
        return problem.jacobian(theta, chosen[points])

    return replace(problem, predict=predict, jacobian=jacobian, target=problem.target[chosen])


def quick_search(problem: Problem, starts: Array) -> Array:
    """Search the best parameters [p] from fewer starts and by one route, for the many refits."""
    starts = np.clip(starts[:: 1 + len(starts) // 1000], problem.lower, problem.upper)
    part = subsample(problem)
    theta, value = refine(part, screen(part, starts, 8), iterations=60)
    best = theta[int(np.argmin(value))]
    return best if part is problem else refine(problem, best[None], iterations=60, smooth=False)[0][0]


def search(problem: Problem, starts: Array, seed: int = 0) -> Optimum:
    """Search globally: screen `starts` [k, p], refine the best, check the result by a second route.

    With many points both routes run on a part of them (`subsample`), and end on all.
    """
    starts = np.clip(starts, problem.lower, problem.upper)
    part = subsample(problem)
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
    part = subsample(problem)
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
