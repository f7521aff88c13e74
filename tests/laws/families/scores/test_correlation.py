"""The permutation p of rank correlations counts every order."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata

from hybridtron.laws import fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.scores.correlation import permutation_p, rank_p


@pytest.mark.parametrize("n", [5, 8])
def test_counting_orders_of_ranks_is_trying_them_all(n):
    rng = np.random.default_rng(n)
    x, y = rankdata(rng.standard_normal(n)), rankdata(rng.integers(0, 4, n).astype(float))
    assert rank_p(x, y, 0)[0] == pytest.approx(permutation_p(x, y, 0)[0])


def test_the_permutation_p_is_exact():
    """Perfect order of five points: 2 of 120 orders are as extreme."""
    p, smallest, counted = rank_p(rankdata(np.arange(5.0)), rankdata(np.arange(5.0)), 0)
    assert p == smallest == pytest.approx(2 / 120)
    assert "120" in counted
    assert fit("proxy", Runs.of(score=[3.0, 1.0, 3.0], loss=[2.5, 1.0, 2.5])).parameters["spearman"] == pytest.approx(1)
