"""Noise of a search's scores, pooled over the patterns that have several seeds.

A score is taken as pattern + seed + noise: what all patterns of a seed have in common, such as an easy test set,
cancels where patterns are compared on the same seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
from scipy.special import stdtrit

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.space.space import Pattern

LEAST_FREEDOM = 5  # degrees of freedom below which a pooled standard deviation is not relied on


@dataclass(frozen=True)
class Noise:
    """Standard deviation of one score beside what all patterns of its seed share; `freedom` is inf if given."""

    deviation: float
    freedom: float

    def quantile(self, level: float) -> float:
        """Return the quantile of Student's t with these degrees of freedom, the normal one with a given deviation."""
        return NormalDist().inv_cdf(level) if np.isinf(self.freedom) else float(stdtrit(self.freedom, level))


def pooled_noise(scores: Mapping[Pattern, Mapping[int, float]]) -> Noise | None:
    """Pool the noise over patterns from scores by seed; None without repeated seeds of at least two patterns.

    Residuals of the least-squares fit of pattern + seed. Patterns may have different seeds.
    """
    repeated = [by_seed for by_seed in scores.values() if len(by_seed) > 1]
    seeds = sorted({seed for by_seed in repeated for seed in by_seed})
    design, values = [], []
    for by_seed in repeated:
        own = np.array([[seed == column for column in seeds] for seed in by_seed], float)
        score = np.fromiter(by_seed.values(), float)
        design.append(own - own.mean(axis=0))
        values.append(score - score.mean())
    if not design:
        return None
    x, y = np.concatenate(design), np.concatenate(values)
    effects, _, rank, _ = np.linalg.lstsq(x, y, rcond=None)
    freedom = len(y) - len(repeated) - int(rank)
    if freedom < 1:
        return None
    return Noise(float(np.sqrt(np.sum((y - x @ effects) ** 2) / freedom)), float(freedom))


def with_noise(finished: Sequence[Observation], noise: Noise | None) -> list[Observation]:
    """Return observations whose standard errors are those of the noise; 0 where that is unknown or too uncertain."""
    deviation = noise.deviation if noise and noise.freedom >= LEAST_FREEDOM else 0.0
    return [replace(o, error=deviation / o.seeds**0.5) for o in finished]
