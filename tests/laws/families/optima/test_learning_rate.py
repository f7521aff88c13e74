"""The learning-rate law: sweeps of several budgets and of one."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from tests.laws import planted


def test_held_out_budgets_of_a_learning_rate_sweep():
    held = fit("learning-rate", planted.learning_rate_runs(1, 0.003), Settings(bootstrap=0, holdout=2)).extrapolation
    assert (held["held_out"], held["largest_fitted"], held["largest_held_out"]) == (2, 1e18, 1e20)
    assert held["mean_absolute_relative_error"] < 0.1
    assert set(held["parameters_without"]) == {"s", "k"}


@pytest.mark.parametrize("other", [None, 1e19])
def test_a_sweep_of_one_budget_gives_its_best_rate_and_plot(other):
    """Where the other budget has its lowest loss at an edge it does not count."""
    runs = planted.one_sweep(1, 0.002)
    if other:
        edge = {"learning_rate": runs["learning_rate"], "flops": np.full(9, other), "loss": np.linspace(3, 2.5, 9)}
        runs = Runs.of(**{name: np.concatenate([runs[name], values]) for name, values in edge.items()})
    found = fit("learning-rate", runs)
    low, high = found.intervals["learning_rate"]
    assert low < 0.003 < high < 1.1 * low
    assert found.parameters == {"learning_rate": pytest.approx(0.003, rel=0.02)}
    assert found.verdict[0].startswith("The best learning rate at 1e+18 FLOPs = 0.003")
    (point,) = (series for series in found.curves if series.label == "least loss")
    assert (point.panel, list(point.x)) == ("sweeps", [found.parameters["learning_rate"]])
    assert {"points", "line"} <= {series.kind for series in found.curves}
    assert any("edge minimum" in warning for warning in found.warnings) == bool(other)
    with pytest.raises(UserError, match="predicts no other"):
        fit("learning-rate", runs, predict={"C": 1e18})


def test_rows_of_one_run_give_a_sweep_no_interval():
    runs = planted.one_sweep(1, 0.002).with_column("run", [0, 0, 1, 2, 3, 4, 5, 6, 7])
    found = fit("learning-rate", runs, group="run")
    assert found.intervals is None
    assert any(warning.startswith("few points: no interval, 9 rows of 8 runs") for warning in found.warnings)
