"""Damped semismooth Newton from many starts at once, under Huber's function (`problem`)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.laws.fitting.optimize.problem import Array, Problem, huber_sum

_AT_ONCE = 8_000  # points times parameter vectors whose derivatives stay in cache
_FEWEST_POINTS = 256  # of a block
_FEWEST_VECTORS = 16  # refined together


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
            cost += huber_sum(residual, part, delta)
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
