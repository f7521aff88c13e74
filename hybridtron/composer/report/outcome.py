"""The result of a search in plain numbers, for result.json and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
from scipy.special import stdtrit

from hybridtron.composer.costs.pareto import pareto_front
from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.nas.budget import spent_on
from hybridtron.composer.nas.config import FunctionConfig
from hybridtron.composer.nas.progress import Progress, Step
from hybridtron.composer.nas.worker import Search
from hybridtron.composer.report.scores import score_row
from hybridtron.composer.space.layouts import Layout, letters_of
from hybridtron.composer.space.space import Pattern as Indices
from hybridtron.composer.votes.aggregate import Aggregate, elect
from hybridtron.composer.votes.confirm import Confirmed, confirmation_json, is_on_test_data, read_confirmation
from hybridtron.composer.votes.noise import LEAST_FREEDOM, with_noise
from hybridtron.composer.votes.vote import FITTED, LEAST_SCORES
from hybridtron.pattern import COMPOSER_NAMES, Pattern, to_composer
from hybridtron.reporting.shown import Shown

BEST_SHOWN = 10
NORMAL = 1.96  # standard deviations of a 95 % interval
CONTEXTS: tuple[int | Literal["all"], ...] = (0, 1, "all")


@dataclass(frozen=True)
class SurrogateFit:
    """The last scores, and what a Gaussian process predicts for each of them from the others."""

    scores: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray  # standard deviation of the prediction
    correlation: float  # Spearman's, of prediction and score
    posterior: dict[Indices, tuple[float, float]]  # mean and deviation without noise; empty where that is unknown


@dataclass(frozen=True)
class Outcome(Shown):
    """The last step of a search that is complete."""

    search: Search
    progress: Progress
    step: Step
    aggregate: Aggregate
    surrogate: SurrogateFit | None  # None without BoTorch, or with too few different scores
    front: list[int] | None  # of `observations`; None without costs as objectives

    @property
    def observations(self) -> Sequence[Observation]:
        return self.step.finished

    @property
    def several_steps(self) -> bool:
        return self.progress.total_steps > 1

    @property
    def num_evaluated(self) -> int:
        return sum(len(step.finished) for step in self.progress.steps)

    @property
    def winner(self) -> Observation:
        return winner(self.step)

    @property
    def is_noisy(self) -> bool:
        """Return whether another seed would give other scores."""
        evaluator = self.search.config.evaluator
        return not isinstance(evaluator, FunctionConfig) or evaluator.noise > 0

    @cached_property
    def confirmed(self) -> list[Confirmed]:
        """Return the patterns that were evaluated on fresh seeds, the vote first."""
        return read_confirmation(self.progress)

    @property
    def is_tested(self) -> bool:
        """Return whether these were evaluated on data that the search has not selected by."""
        return is_on_test_data(self.progress)

    @property
    def is_better(self) -> bool | None:
        """Return whether the highest score is above the vote's by more than noise explains; None where that is unknown.

        Student's t of a difference of two means, corrected for choosing the highest (Bonferroni).
        """
        vote = next((o for o in self.observations if o.pattern == self.aggregate.pattern), None)
        if vote is None:
            return None
        difference, noise = self.winner.score - vote.score, self.step.noise
        if not self.is_noisy:
            return difference > 0
        if noise is None or noise.freedom < LEAST_FREEDOM:
            return None
        error = noise.deviation * (1 / vote.seeds + 1 / self.winner.seeds) ** 0.5
        return difference > noise.quantile(1 - 0.025 / max(1, len(self.observations) - 1)) * error

    def estimate(self, pattern: Indices) -> tuple[float, float, float] | None:
        """Return a pattern's posterior mean and 95 % interval without noise; None where the noise is unknown."""
        found = self.surrogate.posterior.get(pattern) if self.surrogate else None
        return (found[0], found[0] - NORMAL * found[1], found[0] + NORMAL * found[1]) if found else None

    @property
    def optimum(self) -> float | None:
        """Return the best score of the whole space where it is known: analytically, or when all patterns were tried.

        Of a noisy objective the latter is the luckiest score, not the score of the best pattern.
        """
        if self.search.evaluator.optimum is not None:
            return self.search.evaluator.optimum
        if self.several_steps:
            return None  # the last step has seen what was built around one pattern
        return self.winner.score if len(self.observations) == self.step.space.size else None

    def text(self, pattern: Indices) -> str:
        """Return a pattern of any step in this project's notation."""
        return str(Pattern(self.step.space.names(pattern)))

    def notation(self, pattern: Indices) -> str | None:
        """Return Composer's notation, 1A+3M, where all blocks of the space have letters."""
        names = self.step.space.names(pattern)
        return to_composer(Pattern(names)) if {*self.step.space.blocks} <= {*COMPOSER_NAMES.values()} else None

    def short(self, pattern: Indices) -> str:
        """Return Composer's notation where there is one, else this project's."""
        return self.notation(pattern) or self.text(pattern)

    def score_of(self, pattern: Indices) -> float | None:
        """Return the score of a pattern, None where it was not evaluated in the last step."""
        return next((o.score for o in self.observations if o.pattern == pattern), None)

    def tied_layers(self, step: Step) -> list[int]:
        """Return the layers, from 1, at which the vote of a step was a tie."""
        votes = step.aggregate.votes if step.aggregate else ()
        return [position for position, vote in enumerate(votes, start=1) if vote.tied]

    @property
    def num_tied(self) -> int:
        """Count the other patterns whose 95 % interval over seeds (Student's t) overlaps that of the best."""
        seeds = len(self.search.config.seeds)
        if seeds < 2:
            return 0
        scale = float(stdtrit(seeds - 1, 0.975))
        best = self.winner
        return sum(best.score - o.score <= scale * (best.error + o.error) for o in self.observations if o is not best)

    @property
    def note(self) -> str | None:
        """Return why all rules return the same pattern, where a cluster of one makes them."""
        if len(self.aggregate.voters) > 1:
            return None
        return "The best cluster holds one pattern only, so that every vote returns the best single pattern."

    @property
    def equal_size(self) -> str | None:
        """Return what size all patterns were given, in words; None where sizes are as the blocks are written."""
        sizes = self.search.evaluator.sizes
        return sizes.sentence if sizes else None

    @property
    def skipped(self) -> list[Layout]:
        """Return the rows of the engine's file that were left out."""
        return [layout for layout in self.search.layouts if layout.pattern is None]

    @cached_property
    def names(self) -> dict[Indices, str]:
        """Return the names that the engine's file gives to patterns."""
        return {x.pattern: x.name for x in self.search.layouts if x.pattern is not None and x.name is not None}

    @cached_property
    def spent(self) -> dict[str, float] | None:
        """Return the FLOPs and hours of evaluation so far; None without a budget."""
        config = self.search.config
        return spent_on(config, self.search.evaluator, self.progress) if config.budget else None

    def alternatives(self) -> list[dict[str, Any]]:
        """Return the pattern and score of each rule: N_0, N_1, N_all and the best single pattern."""
        return [
            {"rule": name, "pattern": self.text(p), "score": self.score_of(p), **self._posterior_row(p)}
            for name, p in self.rule_patterns().items()
        ]

    def rule_patterns(self) -> dict[str, Indices]:
        """Return the pattern of each rule in the last step, that of the highest posterior mean included if known."""
        known = self.surrogate.posterior if self.surrogate else {}
        tried = [o.pattern for o in self.observations if o.pattern in known]
        best = {"posterior mean": max(tried, key=lambda pattern: known[pattern][0])} if tried else {}
        return {**rule_patterns(self.step), **best}

    def _posterior_row(self, pattern: Indices) -> dict[str, Any]:
        found = self.estimate(pattern)
        return {"posterior_mean": found[0], "posterior_interval": [*found[1:]]} if found else {}

    def best(self) -> list[dict[str, Any]]:
        """Return the evaluated patterns with the highest scores, best first."""
        return [self._row(o) for o in ranked(self.step)]

    def pareto(self) -> list[dict[str, Any]]:
        """Return the Pareto front, cheapest first."""
        return [self._row(self.observations[i]) for i in self.front or ()]

    def _row(self, observation: Observation) -> dict[str, Any]:
        row: dict[str, Any] = {"pattern": self.text(observation.pattern), "score": observation.score}
        row |= score_row(self.progress, observation.pattern, observation.score, self.search.config.seeds)
        if letters := letters_of(self.step.space.names(observation.pattern), self.search.config.space):
            row["letters"] = letters
        if name := self.names.get(observation.pattern):
            row["name"] = name
        if len(self.search.config.seeds) > 1:
            row["standard_error"] = observation.error
        row |= self._posterior_row(observation.pattern)
        if self.search.evaluator.sizes:
            row["parameters"] = self.search.evaluator.sizes.parameters(self.step.space.names(observation.pattern))
        if self.search.costs:
            row["costs"] = {cost.name: cost(observation.pattern) for cost in self.search.costs}
        if len(self.search.costs) == 1:
            (row["cost"],) = row["costs"].values()
        return row

    def _step_row(self, step: Step) -> dict[str, Any]:
        best = winner(step)
        return {
            "step": step.number + 1,
            "layers": step.space.layers,
            "patterns_in_space": step.space.size,
            "evaluated": len(step.finished),
            "failed": len(step.failed),
            "best": {"pattern": self.text(best.pattern), "score": best.score},
            "handed_on": self.text(step.found) if step.found else None,
        }

    def as_json(self) -> dict[str, Any]:
        """Return the content of result.json."""
        blocks = self.step.space.blocks
        return {
            "name": self.search.config.name,
            "evaluated": self.num_evaluated,
            "failed": sum(len(step.failed) for step in self.progress.steps),
            "skipped": [layout.as_json() for layout in self.skipped],
            "budget": self.search.config.budget.model_dump(exclude_none=True) if self.search.config.budget else None,
            "spent": self.spent,
            "stopped": self.progress.stopped,
            "patterns_in_space": self.search.space.size,
            "complete": self.progress.is_complete,
            "quantity": self.search.evaluator.quantity,
            "pattern": self.text(self.aggregate.pattern),
            "best": self.best(),
            "rules": self.alternatives(),
            "note": self.note,
            "not_distinguishable_from_best": self.num_tied,
            "votes": [
                {
                    "chosen": blocks[vote.chosen],
                    "counts": dict(zip(blocks, vote.counts, strict=True)),
                    "tied": vote.tied,
                }
                for vote in self.aggregate.votes
            ],
            "voters": len(self.aggregate.voters),
            "voted_by": self.aggregate.by,
            "clusters": [{"size": len(c), "lowest": min(c), "highest": max(c)} for c in self.aggregate.clusters],
            "optimum": self.optimum,
            "optimum_is_noisy": self.optimum is not None and self.is_noisy,
            "noise": self.step.noise.deviation if self.step.noise else None,
            "confirmation": confirmation_json(self.progress, self.text),
            "surrogate_rank_correlation": self.surrogate.correlation if self.surrogate else None,
            "surrogate_observations": len(self.surrogate.scores) if self.surrogate else None,
            "equal_size": self.equal_size,
            "cost": self.search.costs[0].label if len(self.search.costs) == 1 else None,
            "costs": {cost.name: cost.label for cost in self.search.costs},
            "pareto": self.pareto(),
            "steps": [self._step_row(step) for step in self.progress.steps],
        }


def ranked(step: Step, most: int = BEST_SHOWN) -> list[Observation]:
    """Return the evaluations of a step with the highest scores, the best first."""
    return sorted(step.finished, key=lambda o: -o.score)[:most]


def winner(step: Step) -> Observation:
    """Return the evaluation with the highest score of a step."""
    return ranked(step, 1)[0]


def rule_patterns(step: Step) -> dict[str, Indices]:
    """Return the pattern that each rule makes of the evaluations of a step, which has voted."""
    assert step.aggregate is not None
    votes = {f"N_{context}": elect(step.space, step.aggregate.members, context)[0] for context in CONTEXTS}
    return {**votes, "best single": winner(step).pattern}


def read_outcome(search: Search, progress: Progress) -> Outcome:
    """Return the result of a search that has aggregated at least one step."""
    step = progress.steps[-1]
    assert step.aggregate is not None
    front = pareto_front(step.finished, search.objectives) if search.objectives else None
    return Outcome(search, progress, step, step.aggregate, fit_surrogate(step), front)


def fit_surrogate(step: Step, most: int = FITTED) -> SurrogateFit | None:
    """Fit the last `most` observations of the step; None without BoTorch, or with too few different scores."""
    last = with_noise(step.finished[-most:], step.noise)
    if find_spec("botorch") is None or len({o.score for o in last}) < LEAST_SCORES:
        return None
    from scipy.stats import spearmanr

    from hybridtron.composer.engines.bayesian import fit, leave_one_out, posterior

    model = fit(step.space, last)
    mean, deviation = leave_one_out(step.space, last, model)
    scores = np.array([o.score for o in last])
    known = dict[Indices, tuple[float, float]]()
    if all(o.error for o in last):
        patterns = list(dict.fromkeys([*(o.pattern for o in step.finished), *rule_patterns(step).values()]))
        means, deviations = posterior(model, step.space, patterns)
        known = dict(zip(patterns, zip(means.tolist(), deviations.tolist(), strict=True), strict=True))
    return SurrogateFit(scores, mean, deviation, float(spearmanr(mean, scores).statistic), known)
