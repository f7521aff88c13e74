"""Intervals by resampling runs: who is resampled together, when it is refused, and which interval is read off.

Whole runs are drawn with replacement (Efron 1979; the rows of one run stay together), the law is refitted to every
draw, and the interval is the expanded percentile of Hesterberg (2015, "What teachers should know about the
bootstrap"): percentile levels moved outwards so that small samples with fitted parameters keep their
coverage. With under about ten points for each parameter resampled rows spread too far by themselves (El Karoui and
Purdom 2018, "Can we trust the bootstrap in high dimensions?") and intervals are wider than they need to be. Being a
percentile, it does not depend on whether a parameter or its logarithm was fitted.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.reporting.numbers import plural

LEVEL = 0.95
_WEIGHTS = 1_000_000  # weights held at once
_CHUNK = 128  # replicates fitted at once; fixed, so that the draws do not depend on the number of threads


def group_labels(runs: Runs, group: str | None) -> NDArray[np.intp]:
    """Number of the independent run of each row, [n]; every row is its own run without a group column."""
    return np.arange(len(runs)) if group is None else runs.labels(group)


def refusal(n_groups: int, n_parameters: int) -> str | None:
    """Return why no interval is given, or None: fewer than 3 independent runs for each parameter, or fewer than 8."""
    needed = max(3 * n_parameters, 8)
    if n_groups >= needed:
        return None
    left = plural(max(n_groups - n_parameters, 0), "degree of freedom", "degrees of freedom")
    return (
        f"few points: no intervals, {plural(n_groups, 'independent run')} for {plural(n_parameters, 'parameter')}: "
        f"{left}; at least {needed} runs are needed"
    )


def resample(
    labels: NDArray[np.intp], count: int, seed: int, refit: Callable[[Array], Array], jobs: int = 1
) -> Array:  # fmt: skip
    """Return parameters of `count` resampled fits, [count, p].

    Args:
        labels: run of each row, [n].
        refit: weights of the rows [k, n] -> parameters [k, p].
        jobs: threads.
    """
    n_groups = int(labels.max()) + 1
    sizes = [min(_CHUNK, count - start) for start in range(0, count, _CHUNK)]

    def chunk(index: int) -> Array:
        rng = np.random.default_rng([seed, 1, index])
        even = np.full(n_groups, 1 / n_groups)
        together = max(1, _WEIGHTS // len(labels))  # drawn one after the other, as all at once would be
        parts = [min(together, sizes[index] - start) for start in range(0, sizes[index], together)]
        drawn = (rng.multinomial(n_groups, even, part)[:, labels].astype(np.float64) for part in parts)
        return np.concatenate([refit(weights) for weights in drawn])

    with ThreadPoolExecutor(jobs) as pool:
        return np.concatenate(list(pool.map(chunk, range(len(sizes)))))


def interval(samples: Array, n_groups: int, n_parameters: int) -> list[float]:
    """Return the expanded percentile interval of one quantity from its replicates [count]."""
    freedom = max(n_groups - n_parameters, 1)
    return percentiles(samples, freedom, np.sqrt(n_groups / freedom))


def p_value(value: float, samples: Array, n_groups: int, n_parameters: int) -> float:
    """Return the two-sided p of a quantity against zero by Student's t, its error from the middle of the replicates."""
    freedom = max(n_groups - n_parameters, 1)
    low, high = np.quantile(samples, [0.1587, 0.8413])
    error = max((high - low) / 2 * np.sqrt(n_groups / freedom), 1e-300)
    return float(2 * stdtr(freedom, -abs(value) / error))


def percentiles(samples: Array, freedom: int, widening: float = 1.0) -> list[float]:
    """Return the percentiles at Student's t times `widening`; nan where a tenth of the replicates are not finite."""
    finite = samples[np.isfinite(samples)]
    if len(finite) < 0.9 * len(samples) or len(finite) == 0:
        return [float("nan"), float("nan")]
    level = ndtr(widening * stdtrit(freedom, 0.5 - LEVEL / 2))
    low, high = np.quantile(finite, [level, 1 - level])
    return [float(low), float(high)]


def signs(rng: np.random.Generator, count: int, n_groups: int) -> Array:
    """Draw multipliers of a wild bootstrap for each run: +1 or -1 (Davidson and Flachaire 2008); [count, n_groups]."""
    return np.asarray(rng.integers(0, 2, (count, n_groups)) * 2 - 1, dtype=np.float64)
