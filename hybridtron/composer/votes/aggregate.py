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

from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.space.space import Pattern, Space


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
    members: tuple[Observation, ...]  # of the clusters that vote, with the scores that voted
    clusters: tuple[tuple[float, ...], ...]  # scores, best cluster first
    by: str = "score"  # what these scores are
    means: tuple[float, ...] | None = None  # of all observations, where posterior means voted

    @property
    def voters(self) -> tuple[Pattern, ...]:
        return tuple(o.pattern for o in self.members)


def aggregate(
    space: Space, observations: Sequence[Observation], clusters: int, top: int, context: int | Literal["all"]
) -> Aggregate:
    """Compute N_c: at each position the most frequent block of voters that agree with `context` choices before it.

    Needs at least one observation of a pattern of the space.
    """
    groups = kmeans([o.score for o in observations], clusters)
    members = [observations[i] for group in groups[:top] for i in group]
    pattern, votes = elect(space, members, context)
    scores = tuple(tuple(observations[i].score for i in group) for group in groups)
    return Aggregate(pattern, votes, tuple(members), scores)


def elect(
    space: Space, members: Sequence[Observation], context: int | Literal["all"]
) -> tuple[Pattern, tuple[Vote, ...]]:
    """Return the pattern that the members of the best clusters choose, with the vote at each position."""
    chosen: Pattern = ()
    votes = []
    for position in range(space.layers):
        before = position if context == "all" else min(int(context), position)
        voters = [o for o in members if o.pattern[position - before : position] == chosen[position - before :]]
        by_block = [[o.score for o in voters if o.pattern[position] == block] for block in range(len(space.blocks))]
        counts = tuple(len(scores) for scores in by_block)
        ranks = {
            block: (counts[block], float(np.mean(by_block[block])) if by_block[block] else -np.inf, -block)
            for block in space.choices(chosen)
        }
        winner = max(ranks, key=lambda block: ranks[block])
        votes.append(Vote(counts, winner, sum(counts[block] == counts[winner] for block in ranks) > 1))
        chosen = (*chosen, winner)
    return chosen, tuple(votes)


def kmeans(values: Sequence[float], clusters: int) -> list[list[int]]:
    """Cluster values to the least squared distance from their means; return indices, the highest cluster first.

    Fewer clusters where there are fewer different values. Equal values are never divided. Dynamic programming over the
    sorted values in O(k n^2).
    """
    order = np.argsort(np.asarray(values), kind="stable")
    different, starts, counts = np.unique(np.asarray(values, float)[order], return_index=True, return_counts=True)
    n, k = len(different), min(clusters, len(different))
    weight = np.concatenate([[0.0], np.cumsum(counts)])
    centred = different - np.average(different, weights=counts)
    first = np.concatenate([[0.0], np.cumsum(counts * centred)])
    second = np.concatenate([[0.0], np.cumsum(counts * centred**2)])

    def spreads(stop: int) -> np.ndarray:
        """Return the squared distances of the clusters [0, stop), [1, stop) ... [stop - 1, stop)."""
        total = first[stop] - first[:stop]
        return second[stop] - second[:stop] - total**2 / (weight[stop] - weight[:stop])

    best = np.concatenate([[np.inf], second[1:] - first[1:] ** 2 / weight[1:]])  # of the first values, as one cluster
    cuts = [np.zeros(n + 1, int)]
    for parts in range(2, k + 1):
        divided, cut = np.full(n + 1, np.inf), np.zeros(n + 1, int)
        for stop in range(parts if parts < k else n, n + 1):
            costs = best[:stop] + spreads(stop)
            cut[stop] = costs.argmin()
            divided[stop] = costs[cut[stop]]
        best = divided
        cuts.append(cut)
    groups, stop = [], n
    for cut in reversed(cuts):
        start = int(cut[stop])
        groups.append([int(i) for i in order[starts[start] : starts[stop - 1] + counts[stop - 1]]])
        stop = start
    return groups
