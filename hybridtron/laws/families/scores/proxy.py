"""Does a cheap score (such as MAD accuracy) order architectures as their loss does?

Spearman's and Pearson's correlation, the permutation p of Spearman's, intervals (Pearson's by Fisher's z), and a
verdict that never says more than they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy  # its parts are imported at their first use

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.scores.correlation import permutation_p, rank_p, spearman_interval
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings
from hybridtron.laws.report.verdict import verdict
from hybridtron.laws.result import Fit, Series
from hybridtron.reporting.numbers import plural

FEWEST = 5


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
