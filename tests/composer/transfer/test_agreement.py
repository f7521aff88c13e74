"""How small scores and large losses agree, and how well noise lets them."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from hybridtron.composer.transfer.agreement import measure_agreement, noise_ceiling, reliability


def test_the_same_order_is_1_with_the_smallest_p_of_all_orders():
    found = measure_agreement([0.5, 0.4, 0.3, 0.2, 0.1], [1.0, 1.1, 1.2, 1.3, 1.4])
    assert (found.n, found.spearman, found.counted) == (5, pytest.approx(1.0), "all 120 orders")
    assert found.p == found.smallest_p == pytest.approx(2 / 120)
    assert found.interval[1] == pytest.approx(1.0)


def test_orders_that_differ_by_one_exchange():
    """Of six ranks, two neighbours exchanged: 1 - 6 * 2 / (6 * 35)."""
    scores, losses = [6, 5, 4, 3, 2, 1], [1, 2, 3, 4, 6, 5]
    found = measure_agreement(scores, losses)
    assert found.spearman == pytest.approx(1 - 12 / 210)
    assert found.p == pytest.approx(12 / 720)  # the order itself, one exchange of five neighbours, and both reversed
    assert found.interval[0] < found.spearman < found.interval[1]
    assert found.status in ("weak", "validated")


def test_the_reverse_order_is_the_wrong_way_and_four_patterns_are_no_evidence():
    assert measure_agreement([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]).status == "wrong way"
    few = measure_agreement([4, 3, 2, 1], [1, 2, 3, 4])
    assert (few.status, few.interval) == ("not evidence", None)


def test_without_two_scores_or_losses_there_is_no_correlation():
    assert measure_agreement([1.0], [2.0]) is None
    assert measure_agreement([1.0, 1.0], [2.0, 3.0]) is None
    assert measure_agreement([1.0, 2.0], [2.0, 2.0]) is None


def test_reliability_is_the_share_of_the_variance_that_is_not_noise():
    assert reliability([0.0, 2.0], error=1.0) == pytest.approx(0.5)  # a variance of 2, of which 1 is noise
    assert reliability([0.0, 2.0], error=0.0) == 1.0
    assert reliability([0.0, 0.1], error=1.0) == 0.0


def test_the_noise_ceiling_is_the_mean_correlation_of_two_noisy_measures_of_one_thing():
    assert noise_ceiling(1.0, 1.0, 7) == pytest.approx(1.0)
    assert noise_ceiling(0.0, 1.0, 7) == 0.0
    draw, small, large, n = np.random.default_rng(0), 0.8, 0.6, 8
    drawn = []
    for _ in range(3000):
        truth, first, second = draw.standard_normal((3, n))
        drawn.append(
            spearmanr(
                truth + np.sqrt((1 - small) / small) * first, truth + np.sqrt((1 - large) / large) * second
            ).statistic
        )
    assert noise_ceiling(small, large, n) == pytest.approx(np.mean(drawn), abs=0.02)
