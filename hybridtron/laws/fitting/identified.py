"""Parameters that the data hardly determine: those that could be half or twice as large and fit nearly as well.

The bootstrap gives no honest interval of such a parameter: its replicates follow a long valley or pile on a bound. Each
is therefore fixed at a half and at twice its value, the others are refitted, and the rise of the objective is tested
(likelihood ratio for M-estimators: Heritier and Ronchetti 1994; scaled by the noise of whole runs, after Kent 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hybridtron.laws.fitting.optimize import Array, Problem, refine

_FREE = 1e-13  # of the largest eigenvalue: below, the curve does not feel a direction
_FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class Tested:
    """A coordinate whose identification is tested.

    Attributes:
        name: public name of the parameter.
        log: whether the coordinate is its logarithm.
        with_it: public names that have no interval either where this parameter is hardly determined.
    """

    name: str
    log: bool
    with_it: tuple[str, ...] = ()


def free_parameters(jacobian: Array, theta: Array, public: Callable[[Array], dict[str, Array]]) -> list[str]:
    """Name the public parameters that can be traded against each other without any change of the curve.

    Args:
        jacobian: derivatives of the curve at the rows, [p, n].
        theta: fitted coordinates, [p].
        public: coordinates [k, p] -> public parameters, each [k].
    """
    size = np.linalg.norm(jacobian, axis=1)
    unit = np.where(size > 0, size, 1.0)[:, None]
    values, directions = np.linalg.eigh((jacobian / unit) @ (jacobian / unit).T)
    free = directions[:, values < _FREE * values.max()] / unit  # [p, free directions]
    if not free.size:
        return []
    before, after = public(theta[None]), public(theta + 1e-4 * (free / np.abs(free).max(axis=0)).T)
    return [name for name, value in before.items() if (np.abs(after[name] - value) > 1e-8 * np.abs(value)).any()]


def weak_parameters(
    problem: Problem, theta: Array, labels: NDArray[np.intp], tested: Mapping[int, Tested]
) -> tuple[frozenset[str], list[str]]:
    """Return the parameters that get no interval, and a warning for each of `tested` that the data hardly determine.

    Args:
        problem: with a threshold that does not lie far below the noise.
        theta: near its optimum, [p].
        labels: run of each row, [n].
        tested: by the number of the coordinate.
    """
    centre = refine(problem, theta[None], iterations=60)[0][0]
    found = {one: other for i, one in tested.items() if (other := _as_good(problem, centre, labels, i, one))}
    warnings = [
        f"not identified: no interval of {', '.join((one.name, *one.with_it))}: with {one.name} = {other:.3g} the law "
        "fits these data as well within their noise; add runs over a wider range of sizes and tokens"
        for one, other in found.items()
    ]
    return frozenset(name for one in found for name in (one.name, *one.with_it)), warnings


def profile(problem: Problem, theta: Array, labels: NDArray[np.intp], i: int, step: float) -> tuple[float, float]:
    """Return the ends of the range of coordinate i in which the law fits as well within the noise, or its bounds.

    Walks outwards from the optimum by `step`, refitting the others, while the rise stays below that of 95 %.
    """
    centre = refine(problem, theta[None], iterations=60)[0][0]
    ends = []
    for direction, bound in ((-step, problem.lower[i]), (step, problem.upper[i])):
        at, start = float(centre[i]), centre
        while at != bound:
            moved = float(np.clip(at + direction, problem.lower[i], problem.upper[i]))
            rise, start = _rise(problem, centre, labels, i, moved, start)
            if rise >= 1:
                break
            at = moved
        ends.append(at)
    return ends[0], ends[1]


def _as_good(problem: Problem, theta: Array, labels: NDArray[np.intp], i: int, one: Tested) -> float | None:
    """Return a half or twice the parameter where the data cannot exclude it, or None."""
    for factor in _FACTORS:
        moved = float(theta[i] + np.log(factor) if one.log else theta[i] * factor)
        inside = problem.lower[i] <= moved <= problem.upper[i]
        if inside and moved != theta[i] and _rise(problem, theta, labels, i, moved, theta)[0] < 1:
            return float(np.exp(moved)) if one.log else moved
    return None


def _rise(
    problem: Problem, theta: Array, labels: NDArray[np.intp], i: int, moved: float, others_from: Array
) -> tuple[float, Array]:  # fmt: skip
    """Return the rise of the objective with coordinate i at `moved`, over the rise that noise explains at 95 %.

    The other coordinates are refitted from those of `others_from`, [p], and returned with it.
    """
    value, jacobian = problem.jacobian(theta[None])
    residual, slopes = value[0] - problem.target, jacobian[0]
    score = np.clip(residual, -problem.delta, problem.delta)
    inside = float(np.mean(np.abs(residual) <= problem.delta))
    others = np.delete(slopes, i, axis=0)
    own = slopes[i] - others.T @ np.linalg.lstsq(others.T, slopes[i], rcond=None)[0]  # what the others cannot follow
    of_runs = np.bincount(labels, weights=score * own)
    n_groups = len(of_runs)
    freedom = max(n_groups - len(theta), 1)
    noise = float((of_runs**2).sum()) * n_groups / freedom
    edge = np.where(np.arange(len(theta)) == i, moved, np.nan)
    fixed = replace(
        problem,
        lower=np.where(np.isnan(edge), problem.lower, edge),
        upper=np.where(np.isnan(edge), problem.upper, edge),
    )
    start = np.where(np.isnan(edge), others_from, edge)[None]
    before = refine(problem, theta[None], iterations=30, smooth=False)[1][0]
    refitted, after = (found[0] for found in refine(fixed, start, iterations=60, smooth=False))
    ratio = 2 * float(after - before) * inside * float(own @ own) / max(noise, 1e-300)
    return ratio / float(stdtrit(freedom, 0.975)) ** 2, refitted
