"""Correlations of few points: exact permutation p, and the interval of Spearman's.

The permutation p of ranks is exact up to 12 points. For Spearman's interval a test is inverted, or beyond 30 points the
variance of Bonett and Wright (2000, Psychometrika 65) is taken.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy  # its parts are imported at their first use
from numpy.typing import NDArray
from scipy.special import ndtri

from hybridtron.laws.fitting.optimize.problem import Array

_EXACT = 9  # points up to which every order is tried (9! = 362,880)
_EXACT_RANKS = 12  # points up to which every order of ranks is counted
_DRAWS = 100_000
_SIMULATED = 30


def permutation_p(x: Array, y: Array, seed: int) -> tuple[float, str]:
    """Return the two-sided p of a correlation this far from zero by chance, and how it was counted.

    All orders are counted up to nine points; beyond, 100,000 random ones (with the observed order among them).
    """
    x, y = x - x.mean(), y - y.mean()
    orders = math.factorial(len(x)) if len(x) <= _EXACT else _DRAWS
    found = scipy.stats.permutation_test(
        (y,), lambda order, axis=-1: np.abs((order * x).sum(axis)), permutation_type="pairings", vectorized=True,
        n_resamples=orders, alternative="greater", batch=5000, rng=np.random.default_rng([seed, 5]),
    )  # fmt: skip
    return float(found.pvalue), f"all {orders} orders" if len(x) <= _EXACT else f"{_DRAWS} random orders"


def rank_p(x: Array, y: Array, seed: int) -> tuple[float, float, str]:
    """Compute `permutation_p` of two rows of ranks: p, the smallest p that any order reaches, and how it was counted.

    Up to 12 points all n! orders are counted (scipy does not), by the sum of products that each set of partners of the
    first points leaves possible: ranks and their halves are whole numbers when doubled, so the sums are few.
    """
    n = len(x)
    if n > _EXACT_RANKS:
        p, counted = permutation_p(x, y, seed)
        return p, 1 / (_DRAWS + 1), counted
    first, second = ((2 * values).round().astype(int) for values in (x, y))
    top = int(np.sort(first) @ np.sort(second))
    ways: dict[int, NDArray[np.int64]] = {0: np.eye(1, top + 1, dtype=np.int64)[0]}  # partners used -> ways to each sum
    for product in first:
        grown: dict[int, NDArray[np.int64]] = {}
        for used, sums in ways.items():
            for j in range(n):
                if not used >> j & 1:
                    step = int(product * second[j])
                    moved = grown.setdefault(used | 1 << j, np.zeros_like(sums))
                    moved[step:] += sums[: len(sums) - step]
        ways = grown
    (counts,) = ways.values()
    far = np.abs(np.arange(top + 1) - first.sum() * second.sum() / n)
    orders = math.factorial(n)
    smallest = counts[far >= far[counts > 0].max() - 1e-6].sum()
    hits = counts[far >= far[int(first @ second)] - 1e-6].sum()
    return float(hits / orders), float(smallest / orders), f"all {orders} orders"


def spearman_interval(correlation: float, n: int) -> list[float]:
    """Return the 95 % interval of the population's rank correlation; needs n > 3.

    Up to 30 points it holds every normal correlation under which ranks agree at least (and at most) this well with a
    probability of 2.5 % or more, so that it exists for complete agreement too; beyond, Fisher's z.
    """
    if n > _SIMULATED:
        z = math.atanh(max(min(correlation, 1 - 1e-12), -1 + 1e-12))
        reach = float(ndtri(0.975)) * math.sqrt((1 + correlation**2 / 2) / (n - 3))
        return [math.tanh(z - reach), math.tanh(z + reach)]
    grid, drawn = _rank_correlations(n)
    at_least = (drawn >= correlation - 1e-9).mean(axis=1)  # rises along the grid
    at_most = (drawn <= correlation + 1e-9).mean(axis=1)  # falls along it
    low = float(np.interp(0.025, at_least, grid)) if at_least[0] < 0.025 else -1.0
    high = float(np.interp(0.025, at_most[::-1], grid[::-1])) if at_most[-1] < 0.025 else 1.0
    return [6 / math.pi * math.asin(low / 2), 6 / math.pi * math.asin(high / 2)]


@lru_cache(maxsize=8)
def _rank_correlations(n: int) -> tuple[Array, Array]:
    """Return correlations of a grid, [g], and rank correlations of n normal pairs drawn under each, [g, draws]."""
    rng = np.random.default_rng(n)
    x, noise = rng.standard_normal((2, 6000, n))
    grid = np.tanh(np.linspace(-4, 4, 61))
    x_rank = x.argsort(axis=1).argsort(axis=1) - (n - 1) / 2
    drawn = []
    for rho in grid:
        y = rho * x + math.sqrt(1 - rho**2) * noise
        y_rank = y.argsort(axis=1).argsort(axis=1) - (n - 1) / 2
        drawn.append((x_rank * y_rank).sum(axis=1) * 12 / (n * (n**2 - 1)))
    return grid, np.array(drawn)
