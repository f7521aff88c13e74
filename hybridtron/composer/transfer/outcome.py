"""What a transfer study found: losses of the grown models by size, and how they agree with the search's scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import inf
from statistics import fmean
from typing import Any

from hybridtron.accounting.describe import describe
from hybridtron.composer.transfer.agreement import Agreement, measure_agreement, noise_ceiling, reliability
from hybridtron.composer.transfer.grown import Growth
from hybridtron.composer.transfer.scores import Candidate, Layers, SearchScores, by_indices
from hybridtron.composer.transfer.work import Results, Work
from hybridtron.composer.votes.noise import LEAST_FREEDOM, Noise, pooled_noise
from hybridtron.laws.families.scores.proxy import FEWEST
from hybridtron.pattern import COMPOSER_NAMES, Pattern, to_composer
from hybridtron.reporting.numbers import plural
from hybridtron.reporting.shown import Shown
from hybridtron.training.config import RunConfig

CONCLUSIONS = {
    "not evidence": f"Not evidence: at least {FEWEST} patterns with both a score and a loss are needed.",
    "not shown": "No conclusion: the interval includes zero or p is above 0.05, so these runs do not show that the "
    "search's order holds at this size.",
    "wrong way": "Beyond chance, patterns with better scores have worse losses at this size.",
    "weak": "Beyond chance, better scores go with lower losses at this size, but the correlation may be below 0.5.",
    "validated": "Better scores go with lower losses at this size: the correlation is above 0.5 with 95 % confidence.",
}


@dataclass(frozen=True)
class Grown:
    """A pattern at one size. Losses are by seed; None where training failed, missing where it has not ended."""

    candidate: Candidate
    run: RunConfig
    seeds: int
    losses: Mapping[int, float | None]
    error: str | None

    @property
    def loss(self) -> float | None:
        """Return the mean over seeds, None before all have a finite loss."""
        found = [loss for loss in self.losses.values() if loss is not None]
        return fmean(found) if len(found) == self.seeds else None

    @cached_property
    def parameters(self) -> int:
        return describe(self.run.model, self.run.data.seq_len).total

    @property
    def name(self) -> str:
        return str(Pattern(self.candidate.layers))

    @property
    def short(self) -> str:
        """Return Composer's notation where all blocks have letters, else this project's."""
        known = {*self.candidate.layers} <= {*COMPOSER_NAMES.values()}
        return to_composer(Pattern(self.candidate.layers)) if known else self.name


@dataclass(frozen=True)
class SizeResult:
    """All patterns at one size, the best score first, baselines without one last."""

    size: str
    target: RunConfig
    grown: Sequence[Grown]
    seeds: int  # of each loss
    small_noise: Noise | None  # of one score of the search
    small_seeds: int

    @property
    def ranked(self) -> list[Grown]:
        """Return those with both a score and a loss."""
        return [one for one in self.grown if one.candidate.score is not None and one.loss is not None]

    @cached_property
    def agreement(self) -> Agreement | None:
        return measure_agreement(*self._pairs)

    @cached_property
    def noise(self) -> Noise | None:
        """Return the noise of one loss beside what a seed does to all, pooled over patterns; None where unknown."""
        finite = {one.candidate.layers: _finite(one.losses) for one in self.grown}
        blocks = list(dict.fromkeys(name for layers in finite for name in layers))
        return pooled_noise(by_indices(finite, blocks))

    @property
    def score_error(self) -> float | None:
        """Return the standard error of a score of the search, None where its noise is unknown."""
        return self.small_noise.deviation / self.small_seeds**0.5 if self.small_noise else None

    @property
    def loss_error(self) -> float | None:
        """Return the standard error of a mean loss, None where it has too few degrees of freedom."""
        known = self.noise is not None and self.noise.freedom >= LEAST_FREEDOM
        return self.noise.deviation / self.seeds**0.5 if self.noise and known else None

    @property
    def reliabilities(self) -> tuple[float | None, float | None]:
        """Return the reliability of scores and of losses over the ranked patterns, None where noise is unknown."""
        small, large = self.score_error, self.loss_error
        scores, losses = self._pairs
        return (
            reliability(scores, small) if small is not None and len(scores) > 1 else None,
            reliability(losses, large) if large is not None and len(losses) > 1 else None,
        )

    @property
    def ceiling(self) -> float | None:
        """Return the correlation that noise would leave on average of complete agreement."""
        small, large = self.reliabilities
        return noise_ceiling(small, large, len(self.ranked)) if small is not None and large is not None else None

    @property
    def verdict(self) -> list[str]:
        """Return what the correlation is, how high it could be, and what follows, in a sentence each."""
        found = self.agreement
        if found is None:
            return ["No correlation: two patterns with different scores and different losses are needed."]
        exact = "exact permutation p" if found.counted.startswith("all") else "permutation p"
        spans = f", 95 % interval {found.interval[0]:.2f} to {found.interval[1]:.2f}" if found.interval else ""
        correlation = (
            f"Spearman's correlation of score and negative loss over {found.n} patterns is {found.spearman:.2f} "
            f"(1: the same order), {exact} {found.p:.2g} over {found.counted}{spans}."
        )
        return [correlation, self._ceiling_sentence, CONCLUSIONS[found.status]]

    @property
    def _ceiling_sentence(self) -> str:
        small, large = self.reliabilities
        if self.ceiling is not None:
            return (
                f"Noise ceiling: were the true orders the same, {self.ceiling:.2f} could be expected (reliability "
                f"{small:.2f} of the scores, {large:.2f} of the losses)."
            )
        unknown = [
            f"{what} (reliability of the other: {other:.2f})" if other is not None else what
            for what, own, other in (("the scores", small, large), ("the losses", large, small))
            if own is None
        ]
        return f"Noise ceiling unknown: too few seeds tell the noise of {' and of '.join(unknown)}."

    @property
    def _pairs(self) -> tuple[list[float], list[float]]:
        """Return scores and mean losses of the ranked patterns."""
        pairs = [(one.candidate.score, one.loss) for one in self.ranked]
        return [s for s, _ in pairs if s is not None], [loss for _, loss in pairs if loss is not None]

    def as_json(self) -> dict[str, Any]:
        found, (small, large) = self.agreement, self.reliabilities
        return {
            "size": self.size,
            "target_parameters": describe(self.target.model, self.target.data.seq_len).total,
            "patterns": [
                {
                    "pattern": one.name,
                    "role": one.candidate.role,
                    "rank": one.candidate.rank,
                    "score": one.candidate.score,
                    "loss": one.loss,
                    "losses": {str(seed): loss for seed, loss in one.losses.items()},
                    "grown": one.run.model.pattern,
                    "layers": len(one.run.model.layer_names),
                    "parameters": one.parameters,
                    "error": one.error,
                }
                for one in self.grown
            ],
            "compared": len(self.ranked),
            "spearman": found and found.spearman,
            "p": found and found.p,
            "smallest_p": found and found.smallest_p,
            "interval": found and found.interval,
            "status": found and found.status,
            "score_error": self.score_error,
            "loss_error": self.loss_error,
            "reliability": {"scores": small, "losses": large},
            "noise_ceiling": self.ceiling,
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Transfer(Shown):
    """The sizes of a study, with the search and the growth that they share."""

    scores: SearchScores
    growth: Growth
    seeds: Sequence[int]
    sizes: Sequence[SizeResult]

    @property
    def missing(self) -> int:
        """Count the runs that have not ended."""
        return sum(len(self.seeds) - len(one.losses) for size in self.sizes for one in size.grown)

    @property
    def notes(self) -> list[str]:
        """Return what is unfinished, failed or the same model twice, in a sentence each."""
        found = [f"Not finished: {plural(self.missing, 'run has', 'runs have')} no result yet."] if self.missing else []
        for size in self.sizes:
            models: dict[str, str] = {}
            for one in size.grown:
                first = models.setdefault(one.run.model.pattern, one.name)
                if first != one.name:
                    found.append(f"{size.size}: {one.name} and {first} grow to the same layers.")
                if one.error:
                    found.append(f"{size.size}: {one.name} failed: {one.error}")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return the content of transfer.json."""
        return {
            "search": str(self.scores.folder),
            "quantity": self.scores.quantity,
            "method": self.growth.method,
            "of": self.growth.of,
            "seeds": [*self.seeds],
            "complete": not self.missing,
            "sizes": [size.as_json() for size in self.sizes],
            "notes": self.notes,
        }


def read_transfer(
    scores: SearchScores,
    growth: Growth,
    targets: Mapping[str, RunConfig],
    candidates: Sequence[Candidate],
    work: Work,
    results: Results,
    noise: float | None,
) -> Transfer:
    """Return the study as its results are; `noise` is that of one score, by default as the search's seeds tell it."""
    ordered = sorted(candidates, key=lambda each: each.rank or inf)

    def grown(size: str, layers: Layers, candidate: Candidate) -> Grown:
        rows = {seed: results[size, layers, seed] for seed in work.seeds if (size, layers, seed) in results}
        errors = dict.fromkeys(
            row.get("error", "the loss was not finite") for row in rows.values() if row["loss"] is None
        )
        losses = {seed: row["loss"] for seed, row in rows.items()}
        return Grown(candidate, work.runs[size, layers], len(work.seeds), losses, "; ".join(errors) or None)

    small = Noise(noise, inf) if noise else scores.noise
    sizes = [
        SizeResult(
            size, target, [grown(size, c.layers, c) for c in ordered], len(work.seeds), small, scores.seeds
        )
        for size, target in targets.items()
    ]  # fmt: skip
    return Transfer(scores, growth, work.seeds, sizes)


def _finite(losses: Mapping[int, float | None]) -> dict[int, float]:
    return {seed: loss for seed, loss in losses.items() if loss is not None}
