"""Clusters of scores and the vote N_c."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.space.space import Space
from hybridtron.composer.votes.aggregate import aggregate, kmeans

A, M = 0, 1


def observed(*patterns: tuple[str, float]) -> list[Observation]:
    return [Observation(tuple("AM".index(letter) for letter in text), score) for text, score in patterns]


def letters(pattern) -> str:
    return "".join("AM"[block] for block in pattern)


def test_clusters_have_the_least_spread_of_all_divisions():
    for seed in range(20):
        values = np.random.default_rng(seed).normal(size=9).round(1)
        clusters = kmeans(values, 3)
        assert sorted(i for cluster in clusters for i in cluster) == list(range(9))

        def spread(groups):
            return sum(len(g) * np.var(g) for g in groups)

        ordered = np.sort(values)
        best = min(spread([ordered[:i], ordered[i:j], ordered[j:]]) for i, j in combinations(range(1, 9), 2))
        assert spread([values[cluster] for cluster in clusters]) == pytest.approx(best)
        means = [values[cluster].mean() for cluster in clusters]
        assert means == sorted(means, reverse=True)


def test_equal_scores_stay_together_and_few_scores_make_few_clusters():
    assert kmeans([0.5, 0.5, 0.5], 5) == [[0, 1, 2]]
    assert [sorted(cluster) for cluster in kmeans([0.1, 0.9, 0.1, 0.9], 5)] == [[1, 3], [0, 2]]


def test_thousands_of_scores_are_clustered_at_once():
    scores = np.random.default_rng(0).normal(size=4096)
    begun = time.process_time()
    clusters = kmeans(scores, 5)
    assert time.process_time() - begun < 1
    assert [len(cluster) > 0 for cluster in clusters] == [True] * 5
    means = np.array([scores[cluster].mean() for cluster in clusters])
    nearest = np.abs(scores[:, None] - means).argmin(axis=1)
    assert all(set(nearest[cluster]) == {i} for i, cluster in enumerate(clusters))  # as k-means ends


def test_the_best_cluster_alone_votes():
    seen = observed(("AAMM", 0.91), ("AMMM", 0.90), ("AAMM"[::-1], 0.5), ("MMMM", 0.1), ("MMMA", 0.12))
    found = aggregate(Space(("A", "M"), 4), seen, clusters=3, top=1, context=0)
    assert {letters(p) for p in found.voters} == {"AAMM", "AMMM"}
    assert found.votes[0].counts == (2, 0)
    assert letters(found.pattern) == "AAMM"  # the tie at the second layer goes to the higher score
    assert [vote.tied for vote in found.votes] == [False, True, False, False]
    two = aggregate(Space(("A", "M"), 4), seen, clusters=3, top=2, context=0)
    assert len(two.voters) == 3


def test_context_makes_voters_agree_with_what_was_chosen():
    # By itself each layer prefers A, M, A; given A before it the second layer prefers A.
    seen = observed(("AAM", 1.0), ("AAM", 1.0), ("AMA", 1.0), ("MMA", 1.0), ("MMA", 1.0), ("AMA", 1.0), ("AAM", 1.0))
    space = Space(("A", "M"), 3)
    assert letters(aggregate(space, seen, 1, 1, 0).pattern) == "AMA"
    assert letters(aggregate(space, seen, 1, 1, 1).pattern) == "AAM"
    assert letters(aggregate(space, seen, 1, 1, "all").pattern) == "AAM"


def test_a_full_tie_goes_to_the_first_block():
    found = aggregate(Space(("A", "M"), 2), observed(("AM", 1.0), ("MA", 1.0)), 1, 1, 0)
    assert letters(found.pattern) == "AA"
    assert all(vote.tied for vote in found.votes)


def test_the_vote_keeps_the_constraints():
    seen = observed(("AMA", 1.0), ("AAM", 1.0), ("MAA", 1.0))
    space = Space(("A", "M"), 3, at_most={A: 2})
    assert letters(aggregate(Space(("A", "M"), 3), seen, 1, 1, 0).pattern) == "AAA"
    assert letters(aggregate(space, seen, 1, 1, 0).pattern) == "AAM"


def test_some_voter_is_always_left():
    draw = np.random.default_rng(0)
    space = Space(("A", "M"), 8)
    for _ in range(20):
        patterns = {space.draw(draw) for _ in range(12)}
        seen = [Observation(pattern, float(draw.random())) for pattern in sorted(patterns)]
        for context in (0, 1, 2, "all"):
            found = aggregate(space, seen, 5, 1, context)
            assert all(sum(vote.counts) > 0 for vote in found.votes)
            if context == "all":
                assert found.pattern in found.voters
