"""What a search has found, as plain numbers: result.json, and what the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from hybridtron.composer.aggregate import Aggregate, aggregate
from hybridtron.composer.cost import pareto_front
from hybridtron.composer.engines import Observation
from hybridtron.composer.progress import Progress, Step
from hybridtron.composer.search import Search
from hybridtron.composer.space import Pattern as Indices
from hybridtron.pattern import Pattern

BEST_SHOWN = 10
CONTEXTS: tuple[int | Literal["all"], ...] = (0, 1, "all")


@dataclass(frozen=True)
class SurrogateFit:
    """Every score beside what a Gaussian process predicts for it from all others, with its standard deviation."""

    mean: np.ndarray
    deviation: np.ndarray
    correlation: float  # Spearman's, of prediction and score


@dataclass(frozen=True)
class Outcome:
    """The last step of a search that is complete."""

    search: Search
    progress: Progress
    step: Step
    aggregate: Aggregate
    surrogate: SurrogateFit | None  # None without BoTorch, or with too few different scores
    front: list[int] | None  # of `observations`; None without a cost

    @property
    def observations(self) -> Sequence[Observation]:
        return self.step.finished

    @property
    def optimum(self) -> float | None:
        """The best score there is, where that is known: by its form, or since everything has been tried."""
        if self.search.evaluator.optimum is not None:
            return self.search.evaluator.optimum
        return max(o.score for o in self.observations) if len(self.observations) == self.step.space.size else None

    def text(self, pattern: Indices) -> str:
        return str(Pattern(self.step.space.names(pattern)))

    def score_of(self, pattern: Indices) -> float | None:
        return next((o.score for o in self.observations if o.pattern == pattern), None)

    def alternatives(self) -> list[dict[str, Any]]:
        """What each rule would return: N_0, N_1, N_all and the best single pattern."""
        rule, found = self.search.config.aggregator, []
        for context in CONTEXTS:
            pattern = aggregate(self.step.space, self.observations, rule.clusters, rule.top, context).pattern
            found.append((f"N_{context}", pattern))
        found.append(("best single", max(self.observations, key=lambda o: o.score).pattern))
        return [{"rule": name, "pattern": self.text(p), "score": self.score_of(p)} for name, p in found]

    def best(self) -> list[dict[str, Any]]:
        ranked = sorted(self.observations, key=lambda o: -o.score)[:BEST_SHOWN]
        return [self._row(o) for o in ranked]

    def pareto(self) -> list[dict[str, Any]]:
        return [self._row(self.observations[i]) for i in self.front or ()]

    def _row(self, observation: Observation) -> dict[str, Any]:
        row: dict[str, Any] = {"pattern": self.text(observation.pattern), "score": observation.score}
        if len(self.search.config.seeds) > 1:
            row["standard_error"] = observation.error
        if self.search.cost:
            row["cost"] = self.search.cost(observation.pattern)
        return row

    def as_json(self) -> dict[str, Any]:
        blocks = self.step.space.blocks
        return {
            "name": self.search.config.name,
            "evaluated": len(self.observations),
            "failed": len(self.step.failed),
            "patterns_in_space": self.step.space.size,
            "quantity": self.search.evaluator.quantity,
            "pattern": self.text(self.aggregate.pattern),
            "best": self.best(),
            "rules": self.alternatives(),
            "votes": [
                {
                    "chosen": blocks[vote.chosen],
                    "counts": dict(zip(blocks, vote.counts, strict=True)),
                    "tied": vote.tied,
                }
                for vote in self.aggregate.votes
            ],
            "voters": len(self.aggregate.voters),
            "clusters": [{"size": len(c), "lowest": min(c), "highest": max(c)} for c in self.aggregate.clusters],
            "optimum": self.optimum,
            "surrogate_rank_correlation": self.surrogate.correlation if self.surrogate else None,
            "cost": self.search.cost.label if self.search.cost else None,
            "pareto": self.pareto(),
        }


def read_outcome(search: Search, progress: Progress) -> Outcome:
    """What a complete search found."""
    step = progress.steps[-1]
    assert step.aggregate is not None
    front = pareto_front(step.finished, search.cost) if search.cost else None
    return Outcome(search, progress, step, step.aggregate, _surrogate(step), front)


def _surrogate(step: Step) -> SurrogateFit | None:
    if find_spec("botorch") is None or len({o.score for o in step.finished}) < 4:
        return None
    from scipy.stats import spearmanr

    from hybridtron.composer.bayesian import leave_one_out

    mean, deviation = leave_one_out(step.space, step.finished)
    correlation = float(spearmanr(mean, [o.score for o in step.finished]).statistic)
    return SurrogateFit(mean, deviation, correlation)
