"""From all evaluations to one pattern: clusters of scores, then votes (Composer, arXiv 2510.00379).

Where the paper leaves a choice: clusters are the exact one-dimensional k-means (Wang & Song 2011), which has no seed;
the best `top` clusters vote; a tie goes to the block whose voters score higher on average, then to the first in the
space's order; only blocks that the space's constraints still allow are voted for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hybridtron.composer.engines import Observation
from hybridtron.composer.space import Pattern, Space


@dataclass(frozen=True)
class Vote:
    """One position: how many voters there were for each block, and whether the choice was between equals."""

    counts: tuple[int, ...]
    chosen: int
    tied: bool


@dataclass(frozen=True)
class Aggregate:
    pattern: Pattern
    votes: tuple[Vote, ...]
    voters: tuple[Pattern, ...]
    clusters: tuple[tuple[float, ...], ...]  # scores, best cluster first


def aggregate(
    space: Space, observations: Sequence[Observation], clusters: int, top: int, context: int | Literal["all"]
) -> Aggregate:
    """N_c: position by position, the most frequent block among voters that agree with the `context` choices before it.

    Needs at least one observation of a pattern of the space.
    """
    groups = kmeans([o.score for o in observations], clusters)
    members = [observations[i] for group in groups[:top] for i in group]
    chosen: Pattern = ()
    votes = []
    for position in range(space.layers):
        before = position if context == "all" else min(int(context), position)
        voters = [o for o in members if o.pattern[position - before : position] == chosen[position - before :]]
        vote = _vote(space, voters, position, tuple(space.choices(chosen)))
        votes.append(vote)
        chosen = (*chosen, vote.chosen)
    scores = tuple(tuple(observations[i].score for i in group) for group in groups)
    return Aggregate(chosen, tuple(votes), tuple(o.pattern for o in members), scores)


def _vote(space: Space, voters: Sequence[Observation], position: int, allowed: Sequence[int]) -> Vote:
    by_block = [[o.score for o in voters if o.pattern[position] == block] for block in range(len(space.blocks))]
    counts = tuple(len(scores) for scores in by_block)

    def rank(block: int) -> tuple[int, float, int]:
        return counts[block], float(np.mean(by_block[block])) if by_block[block] else -np.inf, -block

    winner = max(allowed, key=rank)
    return Vote(counts, winner, sum(counts[block] == counts[winner] for block in allowed) > 1)


def kmeans(values: Sequence[float], clusters: int) -> list[list[int]]:
    """Indices of the values in the clusters of least squared distance to their means, the highest values first.

    Fewer clusters where there are fewer different values. Equal values are never divided.
    """
    order = np.argsort(np.asarray(values), kind="stable")
    different, starts, counts = np.unique(np.asarray(values, float)[order], return_index=True, return_counts=True)
    n, k = len(different), min(clusters, len(different))
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    centred = different - np.average(different, weights=counts)
    first = np.concatenate([[0.0], np.cumsum(counts * centred)])
    second = np.concatenate([[0.0], np.cumsum(counts * centred**2)])

    def spread(start: int, stop: int) -> float:
        total = first[stop] - first[start]
        return second[stop] - second[start] - total**2 / (weight[stop] - weight[start])

    best = [[np.inf] * (n + 1) for _ in range(k + 1)]
    cut = [[0] * (n + 1) for _ in range(k + 1)]
    best[0][0] = 0.0
    for parts in range(1, k + 1):
        for stop in range(parts, n + 1):
            for start in range(parts - 1, stop):
                cost = best[parts - 1][start] + spread(start, stop)
                if cost < best[parts][stop]:
                    best[parts][stop], cut[parts][stop] = cost, start
    groups, stop = [], n
    for parts in range(k, 0, -1):
        start = cut[parts][stop]
        groups.append([int(i) for i in order[starts[start] : starts[stop - 1] + counts[stop - 1]]])
        stop = start
    return groups
