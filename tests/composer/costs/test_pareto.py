"""Several objectives: the front is the non-dominated set, and weights lead all over it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from hybridtron.composer.costs.cost import Cost
from hybridtron.composer.costs.pareto import pareto_front, scalarised
from hybridtron.composer.engines.discrete import Observation
from hybridtron.composer.evaluation.closed_form import Chain

COSTS = [Cost("x", (3.0, 1.0, 0.0)), Cost("y", (0.0, 2.0, 1.0)), Cost("z", (1.0, 0.0, 4.0))]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_front_is_the_non_dominated_set_of_a_whole_space(count):
    costs, chain = COSTS[:count], Chain(5, 3, 0)
    seen = [Observation(p, round(chain(p), 1)) for p in product(range(3), repeat=5)]  # with many equal scores
    points = [(o.score, *(-cost(o.pattern) for cost in costs)) for o in seen]
    best = {p for p in points if not any(q != p and all(a >= b for a, b in zip(q, p, strict=True)) for q in points)}
    front = [points[i] for i in pareto_front(seen, costs)]
    assert set(front) == best
    assert len(front) == len(best) < len(set(points))
    assert [-p[1] for p in front] == sorted(-p[1] for p in front)


def test_weights_lead_from_the_cheapest_to_the_best():
    seen = [Observation((0,) * n + (1,) * (4 - n), n / 4) for n in range(5)]
    draws = [scalarised(seen, [Cost("x", (1.0, 0.0))], np.random.default_rng(i)) for i in range(40)]
    assert len({max(weighed, key=lambda o: o.score).pattern for weighed in draws}) >= 3


def test_one_cost_is_weighed_with_the_numbers_that_it_always_was():
    """An unfinished search goes on with the proposals that it would have made."""
    seen = [Observation((0,) * n + (1,) * (4 - n), n**2 / 16, 0.1) for n in range(5)]
    w = np.random.default_rng(7).random()
    parts = np.array([[w * n**2 / 16, (1 - w) * (1 - n / 4)] for n in range(5)])
    weighed = scalarised(seen, [Cost("x", (1.0, 0.0))], np.random.default_rng(7))
    np.testing.assert_allclose([o.score for o in weighed], parts.min(axis=1) + 0.05 * parts.sum(axis=1))
    np.testing.assert_allclose([o.error for o in weighed], 0.1 * w * 1.05)


def test_weights_over_three_costs_lead_to_the_best_of_each_and_to_compromises():
    chain = Chain(5, 3, 0)
    seen = [Observation(p, chain(p)) for p in product(range(3), repeat=5)]
    front = {seen[i].pattern for i in pareto_front(seen, COSTS)}
    draws = [scalarised(seen, COSTS, np.random.default_rng(i)) for i in range(300)]
    chosen = {max(weighed, key=lambda o: o.score).pattern for weighed in draws}
    assert chosen <= front
    assert len(chosen) >= 20
    for cost in COSTS:
        assert min(map(cost, chosen)) <= min(map(cost, front)) + 1


def test_a_cost_that_is_the_same_everywhere_does_not_hide_the_others():
    seen = [Observation((0,) * n + (1,) * (4 - n), n / 4) for n in range(5)]
    same = Cost("y", (1.0, 1.0))
    draws = [scalarised(seen, [Cost("x", (1.0, 0.0)), same], np.random.default_rng(i)) for i in range(40)]
    assert len({max(weighed, key=lambda o: o.score).pattern for weighed in draws}) >= 3
