"""Test scores of patterns: what was measured without choosing anything by it."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.space.space import Pattern


def score_row(progress: Progress, pattern: Pattern, selecting: float) -> dict[str, Any]:
    """Return the score that the engine and the vote saw, and the test score with what it is of; None without one.

    Test scores that were told come first, as means over the search's seeds; else fresh seeds of `confirm` are taken.
    """
    own = {seed: row for (other, seed), row in progress.results.items() if other == pattern}
    told = [row["test_score"] for row in own.values() if "test_score" in row]
    fresh = [own[s]["score"] for s in progress.fresh_seeds if s in own and own[s]["score"] is not None]
    found, kind = (told, "told") if told else (fresh, "fresh seeds") if fresh else ([], None)
    return {"selecting_score": selecting, "test_score": fmean(found) if found else None, "test_score_of": kind}
