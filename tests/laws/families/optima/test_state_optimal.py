"""The state-optimal law: which compute-optimal points are independent."""

from __future__ import annotations

from hybridtron.laws import Settings, fit
from tests.laws import planted


def test_points_found_from_the_same_runs_are_resampled_together():
    """Five budgets of each architecture; where each run gives a point to two budgets, fewer points are independent."""
    runs = planted.state_runs(1, 0.003)
    pairs = [f"{arch} {i % 5 // 2}" for i, arch in enumerate(runs["arch"])]
    settings = Settings(bootstrap=64, group="run")
    found = fit("state-optimal", runs.with_column("run", pairs), settings)
    assert (found.n_points, found.n_groups) == (15, 9)
    assert fit("state-optimal", runs, Settings(bootstrap=64)).n_groups == 15
