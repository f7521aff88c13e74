"""Differences over paired seeds, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hybridtron.ablations.compare import Comparison, compare, corrected, mean_interval

DRAW = np.random.default_rng(0)


def test_the_test_is_the_paired_t_test():
    reference = dict(enumerate(DRAW.normal(3.0, 0.1, 8)))
    losses = {seed: loss - 0.05 + DRAW.normal(0, 0.02) for seed, loss in reference.items()}
    found = compare("a", losses, reference)
    one, other = list(losses.values()), list(reference.values())
    expected = stats.ttest_rel(one, other)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.difference_interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.n == 8


def test_only_common_seeds_are_paired():
    found = compare("a", {0: 1.0, 1: 1.2, 2: 9.0}, {0: 1.1, 1: 1.4, 3: 7.0})
    assert (found.n, found.difference) == (2, pytest.approx(-0.15))
    assert found.loss == pytest.approx(11.2 / 3)


def test_verdicts():
    reference = {0: 1.0, 1: 2.0, 2: 3.0}
    lower = {seed: loss - 0.5 - 0.001 * seed for seed, loss in reference.items()}
    noisy = {0: 1.5, 1: 1.5, 2: 3.1}
    better, unclear = corrected([compare("b", lower, reference), compare("u", noisy, reference)])
    assert (better.verdict, unclear.verdict) == ("better", "not distinguishable")
    assert compare("one", {0: 0.5}, reference).verdict == "one seed, no test"
    assert compare("none", {7: 0.5}, reference).verdict == "no pairs of seeds"
    assert compare("r", reference, None).verdict == "reference"
    same = corrected([compare("s", reference, reference)])[0]
    assert (same.p_holm, same.verdict) == (1.0, "not distinguishable")


def test_holm_by_hand():
    made = [Comparison(str(p), 1.0, None, 2, p=p) for p in (0.04, 0.01, 0.03)] + [Comparison("r", 1.0, None, 2)]
    assert [c.p_holm for c in corrected(made)] == [pytest.approx(0.06), pytest.approx(0.03), pytest.approx(0.06), None]


def test_an_interval_that_excludes_zero_still_needs_the_corrected_p():
    made = Comparison("a", 1.0, (0.9, 1.1), 3, n=3, difference=-0.1, difference_interval=(-0.2, -0.01), p=0.03)
    many = corrected([made, *(Comparison(str(i), 1.0, None, 3, p=0.5) for i in range(9))])
    assert many[0].verdict == "not distinguishable after Holm's correction"


def test_the_interval_holds_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(1)
    inside = [low <= 0 <= high for low, high in (mean_interval(draw.normal(size=3)) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)
