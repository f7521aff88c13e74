"""Sources take turns in exact proportion, at every sample, wherever one begins to look."""

import random
from fractions import Fraction

import numpy as np
import pytest

from hybridtron.data.datasets import proportions
from hybridtron.data.datasets.proportions import Proportions


def largest_error(weights, start, stop):
    """Return the largest distance of a source's samples from its share after start + 1 ... stop samples, exactly."""
    order = Proportions(weights)
    sources, places = order.locate(np.arange(start, stop))
    counts = np.array(order.counts(start)) + np.cumsum(np.eye(len(weights), dtype=np.int64)[sources], axis=0)
    assert np.array_equal(places + 1, counts[np.arange(len(sources)), sources])
    assert counts[-1].tolist() == order.counts(stop)
    exact = [Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    numbers = range(start + 1, stop + 1)
    return max(
        abs(int(count) - n * share)
        for n, row in zip(numbers, counts, strict=True)
        for count, share in zip(row, shares, strict=True)
    )


def test_three_sources_over_ten_thousand_samples():
    """That is two borders of frames; the period of these weights is ten samples."""
    assert largest_error([0.7, 0.2, 0.1], 0, 10_000) < 1
    assert Proportions([0.7, 0.2, 0.1]).counts(10_000) == [7000, 2000, 1000]
    assert Proportions([7, 2, 1]).counts(123_457) == Proportions([0.7, 0.2, 0.1]).counts(123_457)


def test_random_weights_anywhere(monkeypatch):
    """With the shortest frames that the weights allow, so that many of their borders are crossed."""
    monkeypatch.setattr(proportions, "SHORTEST_FRAME", 1)
    draw = random.Random(0)
    kinds = (
        lambda: draw.random() ** draw.choice([1, 3]) + 0.01,
        lambda: draw.choice([1, 2, 3, 0.5, 0.1, 10, 0.33, 0.085]),
        lambda: float(draw.randrange(10**6, 10**8)),
    )
    for _ in range(60):
        kind = draw.choice(kinds)
        weights = [kind() for _ in range(draw.choice([1, 2, 3, 5, 12]))]
        start = draw.choice([0, draw.randrange(10**4), 10**6, 10**12])
        assert largest_error(weights, start, start + draw.randrange(50, 400)) < 1, (weights, start)


def test_heavy_and_light_sources_that_are_due_together():
    """The largest deficit first, or the nearest apportionment of the samples so far, would miss some of these."""
    for weights in ([0.33, 0.33, *[0.085] * 4], [0.9, *[0.01] * 10], [1] * 30, [100, *[1] * 20]):
        assert largest_error(weights, 0, 600) < 1
        assert largest_error(weights, 4096 * 10**6 - 50, 4096 * 10**6 + 50) < 1


def test_the_order_does_not_depend_on_what_was_asked_before():
    weights, indices = [0.37, 1.21, 0.05], np.arange(3 * proportions.SHORTEST_FRAME)
    in_order = Proportions(weights).locate(indices)
    shuffled = np.random.default_rng(0).permutation(indices)
    backwards = Proportions(weights)
    for found, expected in zip(backwards.locate(shuffled), in_order, strict=True):
        assert np.array_equal(found, expected[shuffled])
    one_by_one = [int(backwards.locate(np.array([index]))[0][0]) for index in indices[-50:]]
    assert one_by_one == in_order[0][-50:].tolist()


def test_a_source_of_one_sample_in_many_thousands():
    order = Proportions([1, 2e-5])
    far = 50_001 * 10**7
    assert order.counts(far) == [50_000 * 10**7, 10**7]
    assert largest_error([1, 2e-5], far - 20, far + 20) < 1


@pytest.mark.parametrize("weights", [[1], [0.3]])
def test_one_source_has_all_samples(weights):
    sources, places = Proportions(weights).locate(np.array([0, 5, 10**9]))
    assert sources.tolist() == [0, 0, 0]
    assert places.tolist() == [0, 5, 10**9]
