"""Differences from the reference, paired over seeds, with Student's t-test and Holm's correction.

Runs of one seed share their initial weights, as far as they have the same tensors, and the order of their data: their
difference varies less than the losses do, so seeds are compared in pairs.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy  # its parts are imported at their first use

LEVEL = 0.95  # of every interval
Losses = Mapping[int, float]  # by seed
TEST = "paired t-test over seeds, two-sided; p-values corrected by Holm's method within a table"


@dataclass(frozen=True)
class Comparison:
    """One level or cell beside its reference. Intervals are at 95 % over seeds, None with fewer than two of them.

    `n` counts the pairs of seeds; `p` and `p_holm` are None for the reference itself and where n is below 2.
    """

    name: str
    loss: float | None
    interval: tuple[float, float] | None
    seeds: int
    is_reference: bool = False
    n: int = 0
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def verdict(self) -> str:
        """Return better, worse, not distinguishable, or why nothing can be said."""
        if self.is_reference:
            return "reference"
        if self.difference is None:
            return "no pairs of seeds"
        if self.difference_interval is None or self.p_holm is None:
            return "one seed, no test"
        low, high = self.difference_interval
        if low <= 0 <= high:
            return "not distinguishable"
        if self.p_holm >= 1 - LEVEL:
            return "not distinguishable after Holm's correction"
        return "better" if self.difference < 0 else "worse"

    def as_json(self) -> dict[str, Any]:
        """Return the numbers and the verdict."""
        return {
            "name": self.name, "loss": self.loss, "interval": self.interval, "seeds": self.seeds, "pairs": self.n,
            "difference": self.difference, "difference_interval": self.difference_interval, "p": self.p,
            "p_holm": self.p_holm, "verdict": self.verdict,
        }  # fmt: skip


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return Student's 95 % interval of a mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean, error = float(np.mean(values)), float(scipy.stats.sem(values))
    reach = float(scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1)) * error
    return mean - reach, mean + reach


def compare(name: str, losses: Losses, reference: Losses | None) -> Comparison:
    """Compare losses with those of the reference at the same seeds; None: they are the reference's."""
    values = list(losses.values())
    mean = float(np.mean(values)) if values else None
    plain = Comparison(name, mean, mean_interval(values), len(values), is_reference=reference is None)
    if reference is None:
        return plain
    pairs = [(losses[seed], reference[seed]) for seed in losses if seed in reference]
    if not pairs:
        return plain
    differences = np.array([one - other for one, other in pairs])
    tested = replace(plain, n=len(pairs), difference=float(differences.mean()))
    if len(pairs) < 2:
        return tested
    return replace(tested, difference_interval=mean_interval(differences.tolist()), p=_p_value(differences))


def _p_value(differences: np.ndarray) -> float:
    """Return the two-sided p-value of a mean difference of zero."""
    if np.ptp(differences) == 0:  # no spread: certain, whatever t is
        return 1.0 if differences[0] == 0 else 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # differences that are nearly equal
        p = float(scipy.stats.ttest_1samp(differences, 0.0).pvalue)
    return p if math.isfinite(p) else 1.0


def corrected(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Fill in the p-values that Holm's step-down method gives for all tests together (Holm 1979)."""
    order = sorted((c.p, i) for i, c in enumerate(comparisons) if c.p is not None)
    adjusted, largest = list(comparisons), 0.0
    for rank, (p, i) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[i] = replace(comparisons[i], p_holm=largest)
    return adjusted
