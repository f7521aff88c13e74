"""Test scores of patterns: what was measured without choosing anything by it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from hybridtron.composer.nas.progress import OUTSIDE, Progress
from hybridtron.composer.space.space import Pattern


def score_row(progress: Progress, pattern: Pattern, selecting: float, seeds: Sequence[int]) -> dict[str, Any]:
    """Return the score that the engine and the vote saw, and the test score with what it is of; None without one.

    Test scores that were told come first; then those of fresh seeds of `confirm`, on test data where the evaluator has
    such; then those of the search's own `seeds` on test data.
    """
    own = {seed: row for (other, seed), row in progress.results.items() if other == pattern}
    fresh = [own[s] for s in progress.fresh_seeds if s in own and own[s]["score"] is not None]
    tested = {seed: row["test_score"] for seed, row in own.items() if "test_score" in row}
    told = [score for s, score in tested.items() if own[s].get("tested_by", own[s].get("worker")) == OUTSIDE]
    on_fresh = [row["test_score"] for row in fresh if "test_score" in row]
    kinds = {
        "told": told,
        "fresh seeds on test data": on_fresh if len(on_fresh) == len(fresh) else [],
        "fresh seeds": [row["score"] for row in fresh],
        "test data": [tested[s] for s in seeds if s in tested],
    }
    kind = next((kind for kind, scores in kinds.items() if scores), None)
    test = fmean(kinds[kind]) if kind else None
    return {"selecting_score": selecting, "test_score": test, "test_score_of": kind}
