"""Does a cheap score (such as MAD accuracy) order architectures as their loss does?

Spearman's and Pearson's correlation, the permutation p of Spearman's (exact up to 12 points), intervals (Fisher's z;
for ranks an inverted test, or beyond 30 points the variance of Bonett and Wright 2000, Psychometrika 65), and a verdict
that never says more than they do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import scipy  # its parts are imported at their first use
from numpy.typing import NDArray
from scipy.special import ndtri

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.search import Array
from hybridtron.laws.law import Fit, Law, Series, Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.reporting.numbers import plural

FEWEST = 5
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


def fit(runs: Runs, settings: Settings) -> Fit:
    """Correlate `score` with `loss`; see `LAW`.

    Raises:
        UserError: for predictions (a correlation predicts nothing) and for a column that never changes.
    """
    if settings.predict:
        raise UserError("predict: proxy is a correlation and predicts nothing; expected none")
    score, loss, names = _points(runs, settings.group)
    _require_two(runs.source, score, loss)
    n = len(score)
    warnings = []
    spearman = float(scipy.stats.spearmanr(score, loss).statistic)
    pearson = scipy.stats.pearsonr(score, loss)
    linear = float(pearson.statistic)
    p, smallest, counted = rank_p(scipy.stats.rankdata(score), scipy.stats.rankdata(loss), settings.seed)
    linear_p, _ = permutation_p(score, loss, settings.seed)
    intervals = None
    if n < FEWEST:
        warnings.append(
            f"few points: {plural(n, 'point')} for a correlation, at least {FEWEST} are needed: not evidence"
        )
    else:
        intervals = {
            "spearman": spearman_interval(spearman, n),
            "pearson": list(map(float, pearson.confidence_interval())),
        }
        if n < 10:
            warnings.append(
                f"few points: {n} points for a correlation; the smallest p that they can reach is {smallest:.2g}"
            )
    parameters = {"spearman": spearman, "pearson": linear, "p": p}
    status, facts = judge(p, spearman, intervals)
    slope, offset = np.polyfit(score, loss, 1)
    perplexity = np.exp(np.minimum(loss, 700.0))
    others = (
        [scipy.stats.spearmanr(np.delete(score, i), np.delete(loss, i)).statistic for i in range(n)] if n > 3 else []
    )
    return Fit(
        parameters=parameters,
        objective=float(((loss - offset - slope * score) ** 2).sum()),
        n_points=len(runs),
        n_groups=n,
        intervals=intervals,
        settings={"objective": "squared residual of loss about the straight line in the score, summed"},
        sensitivity={
            "pearson_with_perplexity": float(scipy.stats.pearsonr(score, perplexity).statistic),
            "pearson_p": linear_p,
            "spearman_without_one_point": {"lowest": min(others), "highest": max(others)} if others else None,
        },
        warnings=warnings,
        search={"p_counted_over": counted, "status": status},
        verdict=verdict("proxy", parameters, intervals, n=n, fewest=FEWEST, counted=counted, status=status, **facts),
        curves=_curves(score, loss, names, slope, offset),
    )


def _points(runs: Runs, group: str | None) -> tuple[Array, Array, tuple[str, ...]]:
    """Return score and loss of each point, [n], and its name: of its group, else of its architecture, or none."""
    if group is not None:
        tables = runs.split(group)
        score, loss = (np.array([table[column].mean() for table in tables.values()]) for column in ("score", "loss"))
        return score, loss, tuple(tables)
    named = "arch" in runs and runs["arch"].dtype == object
    return runs["score"], runs["loss"], tuple(runs["arch"]) if named else ()


def _require_two(source: str, score: Array, loss: Array) -> None:
    if len(score) < 2:
        raise UserError(f"{source}: 1 point; a correlation needs at least two")
    for word, words, values in (("score", "scores", score), ("loss", "losses", loss)):
        if np.ptp(values) == 0:
            raise UserError(f"{source}: all {len(values)} points have the {word} {values[0]:g}; a correlation needs at "
                            f"least two {words}")  # fmt: skip


def _curves(score: Array, loss: Array, names: tuple[str, ...], slope: float, offset: float) -> list[Series]:
    """Return the points, and from `FEWEST` on the straight line through them."""
    panel = "loss against proxy score"
    axes: dict[str, Any] = {"x_label": "proxy score", "y_label": "loss (nats per token)", "x_log": False}
    n = len(score)
    if n < FEWEST:
        note = f"not evidence: {plural(n, 'point')}, at least {FEWEST} are needed"
        return [Series(panel, "", "points", score, loss, names=names, note=note, **axes)]
    ends = np.array([score.min(), score.max()])
    return [
        Series(panel, "architectures", "points", score, loss, names=names, **axes),
        Series(panel, "least squares", "line", ends, offset + slope * ends, **axes),
    ]


def judge(p: float, spearman: float, intervals: Mapping[str, list[float]] | None) -> tuple[str, dict[str, Any]]:
    """Return "not evidence", "not shown", "wrong way", "weak" or "validated", and what the verdict says of it.

    More of the score is better, so a loss that rises with it never validates it.
    """
    if intervals is None:
        return "not evidence", {}
    weakest = min(map(abs, intervals["spearman"]))
    crosses = [name for name, (low, high) in intervals.items() if low <= 0 <= high]
    if crosses or p > 0.05:
        return "not shown", {"crosses": crosses}
    if spearman > 0:
        return "wrong way", {}
    return ("weak" if weakest < 0.5 else "validated"), {"weakest": weakest}


LAW = Law(
    name="proxy",
    summary="does a proxy score order models as their loss does: correlations, exact p, and a verdict in words",
    columns=("score", "loss"),
    optional_columns=("arch",),
    parameters=("spearman", "pearson", "p"),
    fit=fit,
    ignores=("delta", "holdout", "bootstrap"),
)
