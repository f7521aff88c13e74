"""The proxy law: its points, and how its p is counted."""

from __future__ import annotations

from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from tests.laws import planted


def test_more_orders_than_can_be_counted_are_not_called_exact():
    twelve, thirteen = (fit("proxy", planted.proxy_runs(1, -0.8, n)) for n in (12, 13))
    assert twelve.search["p_counted_over"] == "all 479001600 orders"
    assert "exact permutation p" in twelve.verdict[0]
    assert "permutation p (100000 random orders)" in thirteen.verdict[0]
    assert "exact" not in thirteen.verdict[0]


def test_points_of_a_correlation_are_named_after_their_architectures_or_their_groups():
    runs = Runs.of(score=[1, 2, 3], loss=[3, 2, 1], arch=["a", "b", "c"], seeds=["x", "x", "y"])
    assert fit("proxy", runs).curves[0].names == ("a", "b", "c")
    grouped = fit("proxy", runs, Settings(group="seeds")).curves[0]
    assert grouped.names == ("x", "y")
    assert list(grouped.x) == [1.5, 3]
