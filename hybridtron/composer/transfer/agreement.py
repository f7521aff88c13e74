"""Do small scores order patterns as the losses of the grown models do, and how well could they, given their noise?

The noise ceiling: with reliabilities r (share of the variance over patterns that is not noise), the correlation of two
noisy measures of one thing is sqrt(r_small r_large) (Spearman 1904, Am. J. Psychol. 15); what Spearman's coefficient of
n such normal pairs is on average follows (Moran 1948, Biometrika 35).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # its parts are imported at their first use

from hybridtron.laws.families.scores.correlation import rank_p, spearman_interval
from hybridtron.laws.families.scores.proxy import FEWEST, judge


@dataclass(frozen=True)
class Agreement:
    """Spearman's correlation of scores and negative losses, 1 for the same order, with its p and 95 % interval."""

    n: int
    spearman: float
    p: float
    smallest_p: float  # that any order of so many patterns reaches
    counted: str  # over what p was counted
    interval: tuple[float, float] | None  # None below FEWEST patterns
    status: str  # as `proxy.judge` says


def measure_agreement(scores: Sequence[float], losses: Sequence[float]) -> Agreement | None:
    """Correlate the ranks of scores, of which larger is better, and of losses; None where either has no order."""
    if len(scores) < 2 or np.ptp(scores) == 0 or np.ptp(losses) == 0:
        return None
    n, small = len(scores), scipy.stats.rankdata(scores)
    large = scipy.stats.rankdata(-np.asarray(losses))
    spearman = float(np.corrcoef(small, large)[0, 1])
    p, smallest, counted = rank_p(small, large, seed=0)
    interval, status = None, "not evidence"
    if n >= FEWEST:
        low, high = spearman_interval(spearman, n)
        interval = (low, high)
        status, _ = judge(p, -spearman, {"spearman": [-high, -low]})  # of score and loss, as a proxy's is
    return Agreement(n, spearman, p, smallest, counted, interval, status)


def reliability(means: Sequence[float], error: float) -> float:
    """Return the share of the variance of means over patterns that is not noise of this standard error."""
    variance = float(np.var(means, ddof=1))
    return max(0.0, 1 - error**2 / variance) if variance else 0.0


def noise_ceiling(small: float, large: float, n: int) -> float:
    """Return the Spearman correlation to expect of n patterns whose true orders agree completely.

    `small` and `large` are the reliabilities of both measures.
    """
    rho = math.sqrt(small * large)
    return 6 / (math.pi * (n + 1)) * ((n - 2) * math.asin(rho / 2) + math.asin(rho))
