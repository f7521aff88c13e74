"""Parameters that the data hardly determine: those that could be half or twice as large and fit nearly as well.

The bootstrap gives no honest interval of such a parameter: its replicates follow a long valley or pile on a bound. Each
is therefore fixed at a half and at twice its value, the others are refitted, and the rise of the objective is tested
(likelihood ratio for M-estimators: Heritier and Ronchetti 1994; scaled by the noise of whole runs, after Kent 1982).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from hybridtron.laws.fitting.optimize.newton import refine
from hybridtron.laws.fitting.optimize.problem import Array, Problem

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
    moves = [(i, one, moved) for i, one in tested.items() for moved in _halved_and_doubled(problem, centre, i, one)]
    if not moves:
        return frozenset(), []
    rises, _ = _rises(problem, centre, labels, [(i, moved) for i, _, moved in moves], centre)
    found: dict[Tested, float] = {}
    for (_, one, moved), rise in zip(moves, rises, strict=True):
        if rise < 1:
            found.setdefault(one, float(np.exp(moved)) if one.log else moved)
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
            (rise,), (start,) = _rises(problem, centre, labels, [(i, moved)], start)
            if rise >= 1:
                break
            at = moved
        ends.append(at)
    return ends[0], ends[1]


def _halved_and_doubled(problem: Problem, theta: Array, i: int, one: Tested) -> list[float]:
    """Return coordinate i at a half and at twice the parameter, as far as these lie inside its bounds."""
    both = [float(theta[i] + np.log(factor) if one.log else theta[i] * factor) for factor in _FACTORS]
    return [moved for moved in both if problem.lower[i] <= moved <= problem.upper[i] and moved != theta[i]]


def _rises(
    problem: Problem, theta: Array, labels: NDArray[np.intp], moves: Sequence[tuple[int, float]], others_from: Array
) -> tuple[Array, Array]:
    """Return, for each move of a coordinate, the rise of the objective over the rise that noise explains at 95 %, [m].

    The other coordinates are refitted from those of `others_from`, [p], and returned with it, [m, p].
    """
    value, jacobian = problem.jacobian(theta[None])
    residual, slopes = value[0] - problem.target, jacobian[0]
    score = np.clip(residual, -problem.delta, problem.delta)
    inside = float(np.mean(np.abs(residual) <= problem.delta))
    freedom = max(int(labels.max()) + 1 - len(theta), 1)
    before = refine(problem, theta[None], iterations=30, smooth=False)[1][0]
    starts, held = np.tile(others_from, (len(moves), 1)), np.zeros((len(moves), len(theta)), dtype=bool)
    for row, (i, moved) in enumerate(moves):
        starts[row, i], held[row, i] = moved, True
    refitted, after = refine(problem, starts, iterations=60, smooth=False, held=held)
    ratios = []
    for row, (i, _) in enumerate(moves):
        others = np.delete(slopes, i, axis=0)
        own = slopes[i] - others.T @ np.linalg.lstsq(others.T, slopes[i], rcond=None)[0]  # what they cannot follow
        of_runs = np.bincount(labels, weights=score * own)
        noise = float((of_runs**2).sum()) * len(of_runs) / freedom
        ratios.append(2 * float(after[row] - before) * inside * float(own @ own) / max(noise, 1e-300))
    return np.array(ratios) / float(stdtrit(freedom, 0.975)) ** 2, refitted
