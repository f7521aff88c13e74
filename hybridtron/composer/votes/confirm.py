"""The confirmation of a search: which patterns get fresh seeds, and how they differ from the vote on them.

The highest of many noisy scores is lucky. Scores on seeds that have chosen nothing are not; and since all patterns have
the same ones, what a seed does to all of them cancels in the differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import fmean, stdev

from scipy.special import stdtrit

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.progress import Progress, Step, confirm_key
from hybridtron.composer.nas.store import Row
from hybridtron.composer.space.space import Pattern
from hybridtron.composer.votes.vote import posterior_means

LEVEL = 0.95  # of all intervals


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Confirmed:
    """A pattern on fresh seeds. `difference` is that from the vote, in pairs; None for the vote itself."""

    pattern: Pattern
    role: str
    score: Interval
    difference: Interval | None

    @property
    def verdict(self) -> str:
        """Return what the difference says of the pattern beside the vote."""
        if self.difference is None:
            return "compared with"
        if self.difference.low > 0:
            return "better"
        return "worse" if self.difference.high < 0 else "not distinguishable"


def choose_candidates(config: SearchConfig, step: Step) -> Row:
    """Return the row that names the patterns to confirm: the vote, the best `top` and the baselines."""
    assert config.confirm is not None
    assert step.aggregate is not None
    roles: dict[Pattern, list[str]] = {step.aggregate.pattern: [f"vote N_{config.aggregator.context}"]}
    ranking, by = _ranking(step)
    for number, pattern in enumerate(ranking[: config.confirm.top], start=1):
        roles.setdefault(pattern, []).append(f"rank {number} by {by}")
    for names in config.baselines:
        roles.setdefault(config.space.patterns.indices(names), []).append("baseline")
    patterns = [" ".join(step.space.names(pattern)) for pattern in roles]
    words = [", ".join(some) for some in roles.values()]
    return {"row": "confirm", "patterns": patterns, "roles": words, "of": confirm_key(config, step)}


def _ranking(step: Step) -> tuple[list[Pattern], str]:
    """Return the evaluated patterns, best first, and what they are ranked by: the means that voted, where means did."""
    if step.aggregate and step.aggregate.means:
        means = [replace(o, score=mean) for o, mean in zip(step.finished, step.aggregate.means, strict=True)]
    else:
        means = posterior_means(step.space, step.finished, step.noise) or []
    ranked = sorted(means or step.finished, key=lambda o: -o.score)
    return [o.pattern for o in ranked], "posterior mean" if means else "score"


def read_confirmation(progress: Progress) -> list[Confirmed]:
    """Return the patterns that were confirmed, the vote first; empty before each has two finite scores in pairs.

    Scores are those on test data where every fresh evaluation has one. Intervals are Student's t over seeds; those of
    the differences hold together (Bonferroni).
    """
    candidates, scores = progress.candidates or {}, dict[Pattern, dict[int, float]]()
    key = "test_score" if is_on_test_data(progress) else "score"
    for pattern in candidates:
        rows = {seed: progress.results.get((pattern, seed), {}) for seed in progress.fresh_seeds}
        scores[pattern] = {seed: row[key] for seed, row in rows.items() if row.get("score") is not None}
    found = []
    vote = next(iter(scores.values()), {})
    for pattern, own in scores.items():
        pairs = [own[seed] - vote[seed] for seed in own if seed in vote]
        if len(pairs) >= 2:
            difference = _interval(pairs, comparisons=len(candidates) - 1) if own is not vote else None
            found.append(Confirmed(pattern, candidates[pattern], _interval([*own.values()]), difference))
    return found


def is_on_test_data(progress: Progress) -> bool:
    """Return whether every finite score of the confirmation has one on test data beside it."""
    rows = [progress.results[unit] for unit in progress.confirm_units if unit in progress.results]
    finite = [row for row in rows if row["score"] is not None]
    return bool(finite) and all("test_score" in row for row in finite)


def _interval(values: list[float], comparisons: int = 1) -> Interval:
    mean, n = fmean(values), len(values)
    half = float(stdtrit(n - 1, 1 - (1 - LEVEL) / 2 / comparisons)) * stdev(values) / n**0.5
    return Interval(mean, mean - half, mean + half)


def confirmation_json(progress: Progress, names: Callable[[Pattern], str]) -> Row | None:
    """Return the confirmation for result.json; None where there is none."""
    found = read_confirmation(progress)
    if not found:
        return None
    rows = [
        {
            "pattern": names(c.pattern),
            "role": c.role,
            "score": c.score.mean,
            "interval": [c.score.low, c.score.high],
            "difference_from_vote": c.difference and c.difference.mean,
            "difference_interval": c.difference and [c.difference.low, c.difference.high],
            "verdict": c.verdict,
        }
        for c in found
    ]
    scores = "test" if is_on_test_data(progress) else "selecting"
    return {"seeds": [*progress.fresh_seeds], "scores": scores, "patterns": rows}
