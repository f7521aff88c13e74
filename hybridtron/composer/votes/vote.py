"""What votes: posterior means where the noise of scores is known, so that lucky scores are not elected; else scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.config import AggregatorConfig
from hybridtron.composer.space.space import Space
from hybridtron.composer.votes.aggregate import Aggregate, aggregate
from hybridtron.composer.votes.noise import Noise, with_noise

FITTED = 1000  # observations that a process is fitted to at most: an exact Gaussian process is cubic in them
LEAST_SCORES = 4  # different ones, to fit a process to


def vote(config: AggregatorConfig, space: Space, finished: Sequence[Observation], noise: Noise | None) -> Aggregate:
    """Cluster the evaluations and elect a pattern as the config says; needs at least one evaluation."""
    means = posterior_means(space, finished, noise) if config.by == "posterior_mean" else None
    found = aggregate(space, means or finished, config.clusters, config.top, config.context)
    return replace(found, by="posterior mean", means=tuple(o.score for o in means)) if means else found


def posterior_means(space: Space, finished: Sequence[Observation], noise: Noise | None) -> list[Observation] | None:
    """Return the evaluations with posterior means, without noise, as scores.

    None where the noise is unknown, BoTorch is not installed, too few scores differ, or a process fitted to them has no
    finite means, as of scores that are too large. Fitted to the last of many.
    """
    seen = with_noise(finished, noise)
    if not find_spec("botorch") or not all(o.error for o in seen) or len({o.score for o in seen}) < LEAST_SCORES:
        return None
    means = _means(space, tuple(seen))
    if not all(map(math.isfinite, means)):
        return None
    return [replace(o, score=mean) for o, mean in zip(seen, means, strict=True)]


@lru_cache(maxsize=64)  # every look at a search asks for the votes of its steps
def _means(space: Space, seen: tuple[Observation, ...]) -> list[float]:
    from hybridtron.composer.engines.bayesian import fit, posterior

    means, _ = posterior(fit(space, seen[-FITTED:]), space, [o.pattern for o in seen])
    return means.tolist()
