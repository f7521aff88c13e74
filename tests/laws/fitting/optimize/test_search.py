"""The objective, its derivatives, and the two routes to its minimum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import huber

from hybridtron.laws import Settings, fit
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.loss import depth_width, overtraining, parametric
from hybridtron.laws.families.scores import downstream
from hybridtron.laws.fitting.curves.curve import fit_curve
from hybridtron.laws.fitting.optimize import newton
from hybridtron.laws.fitting.optimize.problem import gradient, objective
from hybridtron.laws.fitting.optimize.search import screen, search
from tests.laws import planted


def with_shape(runs: Runs) -> Runs:
    rng = np.random.default_rng(3)
    return runs.with_column("width", rng.uniform(256, 4096, len(runs))).with_column(
        "depth", rng.uniform(4, 80, len(runs))
    )


CURVES = {
    "parametric": lambda: parametric.build(planted.parametric_runs(1, 0.01), 1e-3),
    "parametric of two architectures": lambda: parametric.build(
        planted.parametric_runs(1, 0.01).with_column("arch", ["a", "b"] * 50), 1e-3, ["a", "b"]
    ),
    "overtraining": lambda: overtraining.build(planted.overtraining_runs(1, 0.01), math.inf),
    "overtraining, log": lambda: overtraining.build(planted.overtraining_runs(1, 0.01), 0.01, True),
    "downstream": lambda: downstream.build(planted.downstream_runs(1, 0.01), math.inf),
    "depth-width": lambda: depth_width.LAW.build(with_shape(planted.parametric_runs(1, 0.01)), 1e-3),
}


def test_huber_is_a_parabola_up_to_delta_and_then_a_line():
    residual = np.array([0.0, 0.5, 1.0, 3.0, -3.0])
    assert huber(1.0, residual) == pytest.approx([0.0, 0.125, 0.5, 2.5, 2.5])
    assert huber(math.inf, residual) == pytest.approx(residual**2 / 2)


@pytest.mark.parametrize("name", CURVES)
def test_derivatives_agree_with_finite_differences(name):
    problem = CURVES[name]().problem
    rng = np.random.default_rng(0)
    theta = problem.lower + rng.uniform(0.55, 0.8, (5, len(problem.lower))) * (problem.upper - problem.lower)
    if name == "downstream":
        theta[:, 2] = rng.uniform(0.3, 2, 5)  # gamma: steeper curves overflow
    value, jacobian = problem.jacobian(theta)
    np.testing.assert_allclose(value, problem.predict(theta, slice(None)), rtol=1e-12)
    _, slope = gradient(problem, theta)
    for j in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[j] = 1e-5
        up, down = problem.predict(theta + step, slice(None)), problem.predict(theta - step, slice(None))
        np.testing.assert_allclose(jacobian[:, j], (up - down) / 2e-5, rtol=2e-5, atol=1e-8)
        rise = (objective(problem, theta + step) - objective(problem, theta - step)) / 2e-5
        np.testing.assert_allclose(slope[:, j], rise, rtol=1e-4, atol=1e-5 * np.abs(slope).max())


def test_the_objective_is_a_sum_over_points():
    runs = planted.parametric_runs(2, 0.01)
    twice = runs.take(np.tile(np.arange(len(runs)), 2))
    one, two = (fit("parametric", table, Settings(bootstrap=0, holdout=0)) for table in (runs, twice))
    assert two.objective == pytest.approx(2 * one.objective, rel=1e-8)


@pytest.mark.parametrize("unit", [1e-3, 200.0])
@pytest.mark.parametrize(
    ("law", "runs", "sizes", "shapes"),
    [
        ("parametric", planted.parametric_runs(5, 0.002), ("E", "A", "B"), ("alpha", "beta")),
        ("overtraining", planted.overtraining_runs(5, 0.002), ("E", "a", "b"), ("eta",)),
    ],
)
def test_the_unit_of_the_loss_only_changes_sizes(law, runs, sizes, shapes, unit):
    one, other = (
        fit(law, table, Settings(bootstrap=0, holdout=0)).parameters
        for table in (runs, runs.with_column("loss", unit * runs["loss"]))
    )
    assert [other[name] for name in sizes] == pytest.approx([unit * one[name] for name in sizes], rel=1e-4)
    assert [other[name] for name in shapes] == pytest.approx([one[name] for name in shapes], rel=1e-5)


def test_the_units_of_error_and_loss_do_not_hide_the_downstream_optimum():
    runs = planted.downstream_runs(5, 0.002)
    per_cent = Runs.of(loss=50 * runs["loss"], error=100 * runs["error"])
    one, other = (
        fit_curve(downstream.build, table, Settings(bootstrap=0), math.inf).parameters for table in (runs, per_cent)
    )
    assert other["epsilon"] == pytest.approx(100 * one["epsilon"], rel=1e-5)
    assert other["gamma"] == pytest.approx(one["gamma"] / 50, rel=1e-5)


def test_noiseless_data_give_the_truth_by_both_routes():
    curve = parametric.build(planted.parametric_runs(3, 0.0), 1e-3)
    found = search(curve.problem, curve.starts)
    values = {name: float(value[0]) for name, value in curve.public(found.theta[None]).items()}
    assert values == pytest.approx(planted.PARAMETRIC, rel=1e-4)
    assert found.second_route < 1e-9
    settings = Settings(bootstrap=0, holdout=0)
    assert fit("parametric", planted.parametric_runs(3, 0.0), settings).warnings == []
    assert found.starts == 4500


def test_the_report_of_the_search_counts_starts_and_names_the_second_route():
    found = fit("parametric", planted.parametric_runs(4, 0.005), Settings(bootstrap=0)).search
    assert found["starts"] == 4500
    assert 1 <= found["starts_at_optimum"] <= found["starts_refined"]
    assert found["second_route_relative_difference"] == pytest.approx(0, abs=1e-6)


def test_starts_refined_in_parts_end_where_they_do_together(monkeypatch):
    curve = parametric.build(planted.parametric_runs(4, 0.005), 1e-3)
    weights = np.random.default_rng(1).multinomial(100, np.full(100, 0.01), 24).astype(float)
    starts = screen(curve.problem, curve.starts, 24)
    together = newton.refine(curve.problem, starts, weights)
    monkeypatch.setattr(newton, "_AT_ONCE", 700)
    for one, other in zip(together, newton.refine(curve.problem, starts, weights), strict=True):
        assert other == pytest.approx(one, rel=1e-4)
