"""Which test score a pattern has, of those that its evaluations recorded."""

from __future__ import annotations

from hybridtron.composer.nas.progress import Progress
from hybridtron.composer.report.scores import score_row

SEEDS = (0, 1)  # of the search
EVALUATED = {0: (0.5, 0.1), 1: (0.7, 0.3), 2: (0.9, 0.8), 3: (0.9, 0.6)}  # seed -> score, test score


def read(fresh: tuple[int, ...], changes: dict[int, dict] | None = None) -> tuple[float | None, str | None]:
    """Return the test score of a pattern with these evaluations, where `fresh` are the seeds of the confirmation."""
    results = {
        ((0, 1), seed): {"score": score, "test_score": test, "worker": "w"} for seed, (score, test) in EVALUATED.items()
    }
    for seed, change in (changes or {}).items():
        results[(0, 1), seed] |= change
    row = score_row(Progress([], 1, results, {}, fresh), (0, 1), 0.6, SEEDS)
    return row["test_score"], row["test_score_of"]


def test_fresh_seeds_come_before_the_searchs_own():
    assert read((2, 3)) == (0.7, "fresh seeds on test data")


def test_seeds_of_a_confirmation_that_the_config_has_no_longer_count_no_more():
    assert read(()) == (0.2, "test data")


def test_what_was_told_comes_first():
    assert read((2, 3), {1: {"tested_by": "outside"}}) == (0.3, "told")


def test_failed_seeds_of_the_confirmation_are_left_out():
    failed = {2: {"score": None}}
    assert read((2, 3), failed) == (0.6, "fresh seeds on test data")
