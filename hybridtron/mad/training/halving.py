"""Successive halving of the cells of a grid (Jamieson & Talwalkar 2016, arXiv 1502.07943)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def halving_steps(num_cells: int, steps: int, every: int) -> frozenset[int]:
    """Return the steps after whose evaluation the worse half of the cells ends.

    The last is half of `steps`, each before it half of the one after, as many as leave one cell; each at the first of
    the evaluations, `every` so many steps, that is not before it.
    """
    rungs = (-(-steps // (2**i * every)) * every for i in range(1, (num_cells - 1).bit_length() + 1))
    return frozenset(rung for rung in rungs if rung < steps)


def worse_half(seeds: Sequence[int], losses: Mapping[int, float], accuracies: Mapping[int, float]) -> list[int]:
    """Return the cells that end, of those in progress, whose losses and accuracies are given by their number.

    `seeds` has the seed of each cell; of every seed the better half stays, one more of an odd number. The higher
    accuracy is better, and of equal ones the lower loss.
    """
    worse = []
    for seed in dict.fromkeys(seeds[i] for i in losses):
        cells = sorted((i for i in losses if seeds[i] == seed), key=lambda i: (-accuracies[i], losses[i], i))
        worse += cells[-(-len(cells) // 2) :]
    return worse
