"""Means over settings and seeds, with Student's t interval at 95 % over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from scipy.special import stdtrit

from hybridtron.mad.scoring.selection import BySetting

KINDS = ("micro", "macro")


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds; no interval with one seed. The interval ends where accuracies do, at 0 and 1."""

    mean: float
    low: float | None
    high: float | None
    seeds: int

    def overlaps(self, other: Estimate) -> bool:
        """Return whether both have an interval, and these have a point in common."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{100 * self.mean:.1f}"
        if self.low == 0 or self.high == 1:
            return f"{100 * self.mean:.1f} ({100 * self.low:.1f}–{100 * self.high:.1f})"
        return f"{100 * self.mean:.1f} ± {50 * (self.high - self.low):.1f}"


def estimate(values: Sequence[float]) -> Estimate:
    """Average one value per seed, with a 95 % interval."""
    n = len(values)
    mean = fmean(values)
    if n < 2:
        return Estimate(mean, None, None, n)
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * spread / math.sqrt(n)
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0), n)


def mean_by_seed(best: BySetting, kind: str) -> dict[int, float]:
    """Average test accuracy, micro or macro, over settings for every seed; all settings have the same seeds."""
    seeds = sorted(next(iter(best.values())))
    return {seed: fmean(by_seed[seed][f"test_{kind}"] for by_seed in best.values()) for seed in seeds}


def means(best: BySetting) -> dict[str, Estimate]:
    """Average both kinds of test accuracy over settings, with intervals over seeds."""
    return {kind: estimate(list(mean_by_seed(best, kind).values())) for kind in KINDS}
