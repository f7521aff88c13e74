"""Stretching and stacking, against the counts that the paper reports."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import groupby, product

import pytest

from hybridtron.composer.grow.extrapolate import TargetTooSmall, _nearest_sum, size, stack, stretch

A_1B, M_1B = 10_485_760, 50_331_648  # Llama 3.2 1B: grouped-query attention of width 2048, SwiGLU of 8192
LLAMA_1B = 16 * (A_1B + M_1B)
COSTS = {"A": A_1B, "M": M_1B}
SMALL_6, SMALL_16 = tuple("AAMMMM"), tuple("AAMMMMMAAMMMAMMM")


def runs(layers):
    return "+".join(f"{len(list(run))}{block}" for block, run in groupby(layers))


def test_the_papers_one_billion_models():
    stacked, stretched = stack(SMALL_6, COSTS, LLAMA_1B), stretch(SMALL_16, COSTS, LLAMA_1B)
    assert runs(stacked) == "2A+4M+2A+4M+2A+4M+2A+4M+1A+2M"
    assert runs(stretched) == "4A+9M+4A+5M+2A+5M"
    assert (len(stacked), stacked.count("A")) == (27, 9)
    assert (len(stretched), stretched.count("A")) == (29, 10)
    assert size(stacked, COSTS) == 1_000_341_504
    assert size(stretched, COSTS) == 1_061_158_912


def test_stretching_six_layers_gives_two_runs():
    assert runs(stretch(SMALL_6, COSTS, LLAMA_1B)) == "9A+18M"


@pytest.mark.parametrize("copies", [1, 2, 8])
def test_whole_copies_leave_nothing_over(copies):
    target = copies * size(SMALL_6, COSTS)
    assert stack(SMALL_6, COSTS, target) == SMALL_6 * copies
    assert runs(stretch(SMALL_6, COSTS, target)) == f"{2 * copies}A+{4 * copies}M"


@pytest.mark.parametrize("method", [stretch, stack])
@pytest.mark.parametrize("small", [SMALL_6, SMALL_16, tuple("AMA")])
def test_rounding_up_never_falls_short_and_nearest_is_nearer(method, small):
    for target in range(size(small, COSTS), 40 * size(small, COSTS), 97_531_357):
        up = size(method(small, COSTS, target), COSTS)
        nearest = size(method(small, COSTS, target, "nearest"), COSTS)
        assert target <= up < target + sum(COSTS[block] for block in small)
        assert abs(nearest - target) <= min(up - target, max(COSTS.values()))


def test_nearest_is_the_best_of_all_ways_to_round():
    costs = {"A": 3, "M": 7}
    small = tuple("AAMMMAMMMM")  # 4 runs: 16 ways
    for target in range(size(small, costs), 300):
        exact = [Fraction(target, size(small, costs)) * length for length in (2, 3, 1, 4)]
        choices = [{max(1, math.floor(count)), math.ceil(count)} for count in exact]
        ways = [sum(c * n for c, n in zip((3, 7, 3, 7), counts, strict=True)) for counts in product(*choices)]
        found = size(stretch(small, costs, target, "nearest"), costs)
        assert abs(found - target) <= min(abs(way - target) for way in ways)


def test_nearest_is_the_best_of_all_sums_with_many_kinds_of_block():
    draw = random.Random(0)
    for _ in range(20):
        items = [(draw.randrange(1, 50), draw.randrange(4)) for _ in range(5)]
        goal = draw.randrange(300)
        sums = [
            (abs(goal - sum(c * n for (c, _), n in zip(items, counts, strict=True))), sum(counts))
            for counts in product(*(range(most + 1) for _, most in items))
        ]
        found = _nearest_sum(items, goal)
        distance = abs(goal - sum(c * n for (c, _), n in zip(items, found, strict=True)))
        assert (distance, sum(found)) == min(sums)
        assert all(count <= most for count, (_, most) in zip(found, items, strict=True))


@pytest.mark.parametrize("method", [stretch, stack])
def test_a_target_below_the_pattern_is_refused(method):
    assert method(SMALL_6, COSTS, size(SMALL_6, COSTS)) == SMALL_6
    with pytest.raises(TargetTooSmall):
        method(SMALL_6, COSTS, size(SMALL_6, COSTS) - 1)
