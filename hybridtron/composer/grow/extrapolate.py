"""From a small pattern to one of a target's size: stretching and stacking (Composer, arXiv 2510.00379).

A pattern's size is the sum of its layers' costs: parameters, or FLOPs. The paper compares sizes without embeddings;
norms are left out as well, since with them a target of exactly eight copies would be eight and a few thousandths.
Arithmetic is exact.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import groupby, product
from typing import Literal

Layers = tuple[str, ...]
Costs = Mapping[str, int]  # of one layer of each block
Rounding = Literal["up", "nearest"]


class TargetTooSmall(ValueError):
    """The target is smaller than the pattern that is to grow into it."""


def size(layers: Sequence[str], costs: Costs) -> int:
    return sum(costs[block] for block in layers)


def stretch(layers: Layers, costs: Costs, target: int, rounding: Rounding = "up") -> Layers:
    """Lengthen every run of h equal layers to ceil(s h), s = target / size. Raises TargetTooSmall.

    The result is never smaller than the target. Rounding `nearest` takes s h up or down in each run, at least to 1, so
    that the size comes as near to the target as that allows.
    """
    factor = _growth(layers, costs, target)
    return _scaled(layers, costs, factor, target, rounding, least=1)


def stack(layers: Layers, costs: Costs, target: int, rounding: Rounding = "up") -> Layers:
    """Append floor(target / size) whole copies, then one whose runs of h layers are ceil(h r / size), r what is left.

    Raises TargetTooSmall. Rounding `nearest` chooses up or down, to 0 too, in each run of the last copy.
    """
    copies = math.floor(_growth(layers, costs, target))
    left = target - copies * size(layers, costs)
    rest = Fraction(left, size(layers, costs))
    return layers * copies + (_scaled(layers, costs, rest, left, rounding, least=0) if left else ())


METHODS = {"stretch": stretch, "stack": stack}


def _growth(layers: Layers, costs: Costs, target: int) -> Fraction:
    small = size(layers, costs)
    if target < small:
        raise TargetTooSmall(f"the target has {target:,}, the pattern {small:,}")
    return Fraction(target, small)


def _scaled(layers: Layers, costs: Costs, factor: Fraction, target: int, rounding: Rounding, least: int) -> Layers:
    runs = [(block, len(list(run))) for block, run in groupby(layers)]
    exact = [factor * length for _, length in runs]
    if rounding == "up":
        counts = [math.ceil(count) for count in exact]
    else:
        counts = _nearest([block for block, _ in runs], exact, costs, target, least)
    return tuple(block for (block, _), count in zip(runs, counts, strict=True) for _ in range(count))


def _nearest(blocks: Sequence[str], exact: Sequence[Fraction], costs: Costs, target: int, least: int) -> list[int]:
    """Round each count up or down so that the size is nearest to the target; ties go to fewer layers.

    Runs of one block cost alike, so only how many of them round up matters: those with the largest remainders do.
    """
    counts = [max(least, math.floor(count)) for count in exact]
    candidates = {
        block: sorted(
            (i for i, name in enumerate(blocks) if name == block and counts[i] < exact[i]),
            key=lambda i: counts[i] - exact[i],
        )
        for block in dict.fromkeys(blocks)
    }
    missing = target - sum(count * costs[block] for block, count in zip(blocks, counts, strict=True))

    best = _nearest_sum([(costs[block], len(runs)) for block, runs in candidates.items()], missing)
    for runs, ups in zip(candidates.values(), best, strict=True):
        for i in runs[:ups]:
            counts[i] += 1
    return counts


def _nearest_sum(items: Sequence[tuple[int, int]], goal: int) -> tuple[int, ...]:
    """Return how many of each item (cost, largest count) sum to the cost nearest to `goal`; ties go to fewer.

    All sums of one half of the items meet the sorted sums of the other, so that many kinds of block stay cheap.
    """
    half = len(items) // 2
    first, second = _sums(items[:half]), sorted(_sums(items[half:]).items())
    sums = [total for total, _ in second]
    candidates = []
    for total, counts in first.items():
        nearest = bisect_left(sums, goal - total)
        for other, more in second[max(0, nearest - 1) : nearest + 1]:
            chosen = (*counts, *more)
            candidates.append((abs(goal - total - other), sum(chosen), chosen))
    return min(candidates)[2]


def _sums(items: Sequence[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """Map each total cost to the fewest counts that make it."""
    ways = product(*(range(most + 1) for _, most in items))
    fewest_last = sorted(ways, key=lambda counts: (sum(counts), counts), reverse=True)
    return {sum(cost * count for (cost, _), count in zip(items, way, strict=True)): way for way in fewest_last}
