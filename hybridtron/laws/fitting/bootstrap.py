"""Intervals by resampling runs: who is resampled together, when it is refused, and which interval is read off.

Whole runs are drawn with replacement (Efron 1979; the rows of one run stay together), the law is refitted to every
draw, and the interval is the expanded percentile of Hesterberg (2015, "What teachers should know about the
bootstrap"): percentile levels moved outwards so that small samples with fitted parameters keep their
coverage. With under about ten points for each parameter resampled rows spread too far by themselves (El Karoui and
Purdom 2018, "Can we trust the bootstrap in high dimensions?") and intervals are wider than they need to be. Being a
percentile, it does not depend on whether a parameter or its logarithm was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from hybridtron.laws.data.runs import Runs

Array = NDArray[np.float64]

LEVEL = 0.95
_CHUNK = 128  # replicates fitted at once; fixed, so that the draws do not depend on the number of threads


def group_labels(runs: Runs, group: str | None) -> NDArray[np.intp]:
    """Number of the independent run of each row, [n]; every row is its own run without a group column."""
    if group is None:
        return np.arange(len(runs))
    return np.unique(runs[group].astype(str), return_inverse=True)[1].astype(np.intp)


def refusal(n_groups: int, n_parameters: int, what: str = "runs") -> str | None:
    """Why no interval is given, or None: fewer than 3 independent runs for each parameter, or fewer than 8."""
    needed = max(3 * n_parameters, 8)
    if n_groups >= needed:
        return None
    return (
        f"few points: no intervals, {n_groups} independent {what} for {n_parameters} parameters leave "
        f"{max(n_groups - n_parameters, 0)} degrees of freedom; at least {needed} {what} are needed"
    )


def resample(
    labels: NDArray[np.intp], count: int, seed: int, refit: Callable[[Array], Array], jobs: int = 1
) -> Array:  # fmt: skip
    """Parameters of `count` resampled fits, [count, p].

    Args:
        labels: run of each row, [n].
        refit: weights of the rows [k, n] -> parameters [k, p].
        jobs: threads.
    """
    n_groups = int(labels.max()) + 1
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]

    def chunk(index: int) -> Array:
        rng = np.random.default_rng([seed, 1, index])
        weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), sizes[index])[:, labels]
        return refit(weights.astype(np.float64))

    return np.concatenate(in_threads(chunk, range(len(sizes)), jobs))


def in_threads(task: Callable[[int], Array], items: range, jobs: int) -> list[Array]:
    """Results of `task` in order, from up to `jobs` threads."""
    if jobs <= 1 or len(items) <= 1:
        return [task(item) for item in items]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(task, items))


def interval(samples: Array, n_groups: int, n_parameters: int) -> list[float]:
    """Expanded percentile interval of one quantity from its replicates [count]."""
    finite = samples[np.isfinite(samples)]
    if len(finite) < 0.9 * len(samples) or len(finite) == 0:
        return [float("nan"), float("nan")]
    freedom = max(n_groups - n_parameters, 1)
    level = ndtr(np.sqrt(n_groups / freedom) * stdtrit(freedom, 0.5 - LEVEL / 2))
    low, high = np.quantile(finite, [level, 1 - level])
    return [float(low), float(high)]


def intervals(
    samples: Mapping[str, Array], n_groups: int, n_parameters: int
) -> dict[str, list[float]]:  # fmt: skip
    """`interval` of each named quantity."""
    return {name: interval(values, n_groups, n_parameters) for name, values in samples.items()}


def signs(rng: np.random.Generator, count: int, n_groups: int) -> Array:
    """Multipliers of a wild bootstrap, one for each run: +1 or -1 (Davidson and Flachaire 2008); [count, n_groups]."""
    return np.asarray(rng.integers(0, 2, (count, n_groups)) * 2 - 1, dtype=np.float64)


def residual_interval(samples: Array, freedom: int) -> list[float]:
    """Percentile interval of replicates of leverage-corrected residuals, with levels of Student's t."""
    finite = samples[np.isfinite(samples)]
    if len(finite) < 0.9 * len(samples) or len(finite) == 0:
        return [float("nan"), float("nan")]
    level = ndtr(stdtrit(max(freedom, 1), 0.5 - LEVEL / 2))
    low, high = np.quantile(finite, [level, 1 - level])
    return [float(low), float(high)]
