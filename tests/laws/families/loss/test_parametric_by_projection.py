"""Variable projection beside the parametric law on the same rows."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.laws import Settings, fit
from hybridtron.laws.fitting.optimize.variable_projection import inner, project, surface
from tests.laws import planted

EXACT = Settings(bootstrap=0, holdout=0)


def tables(runs):
    x, y = np.log(runs["n_params"]), np.log(runs["tokens"])
    return [(x - x.mean(), y - y.mean(), runs["loss"])]


def test_variable_projection_finds_the_truth_without_a_start():
    found = fit("parametric", planted.parametric_runs(3, 0.0), EXACT).cross_checks["variable_projection"]
    assert found["parameters"] == pytest.approx(planted.PARAMETRIC, rel=1e-4)
    assert found["relative_difference"] == pytest.approx(dict.fromkeys(planted.PARAMETRIC, 0.0), abs=1e-3)


def test_neither_method_is_beaten_on_its_own_objective():
    fitted = fit("parametric", planted.parametric_runs(4, 0.01), EXACT)
    found = fitted.cross_checks["variable_projection"]
    assert found["objective"]["value"] < found["objective"]["at_this_fit"]
    assert (
        fitted.objective
        == found["objective_of_this_fit"]["value"]
        < found["objective_of_this_fit"]["at_the_projection"]
    )
    assert not any(warning.startswith("search") for warning in fitted.warnings)


def test_the_surface_is_the_least_squares_of_each_pair_of_exponents():
    data = tables(planted.parametric_runs(5, 0.01)) + tables(planted.narrow_runs(5, 0.01))
    alphas, betas = np.array([0.05, 0.34, 2.5]), np.array([0.02, 0.36])
    by_pairs = [[inner(data, alpha, beta)[0] for alpha in alphas] for beta in betas]
    np.testing.assert_allclose(surface(data, alphas, betas), by_pairs, rtol=1e-6)


def test_the_region_holds_the_exponents_in_19_sets_of_20():
    held = []
    for i in range(60):
        found = project(tables(planted.parametric_runs([51, i], 0.005)), 95)
        truth = [planted.PARAMETRIC["alpha"], planted.PARAMETRIC["beta"]]
        held.append(all(low <= value <= high for value, (low, high) in zip(truth, found.spans(), strict=True)))
    assert 0.87 <= np.mean(held) <= 1  # a box around the ellipse holds a little more than 95 %


def test_each_architecture_has_sizes_of_its_own_in_the_projection():
    runs = planted.parametric_runs(3, 0.0).with_column("arch", ["a", "b"] * 50)
    runs = runs.with_column("loss", runs["loss"] + np.where(runs["arch"] == "b", 0.1, 0.0))
    settings = Settings(bootstrap=0, holdout=0, options={"architectures": "offset"})
    parameters = fit("parametric", runs, settings).cross_checks["variable_projection"]["parameters"]
    assert parameters["E[b]"] - parameters["E[a]"] == pytest.approx(0.1, abs=1e-4)


def test_far_rows_that_one_method_squares_and_the_other_does_not_are_warned_of():
    runs = planted.parametric_runs(6, 0.001)
    spoiled = runs.with_column("loss", runs["loss"] * np.where(np.arange(100) % 33 == 5, 1.2, 1.0))
    settings = Settings(bootstrap=100, holdout=0)
    clean, far = (fit("parametric", table, settings).warnings for table in (runs, spoiled))
    assert not any(warning.startswith("cross-check") for warning in clean)
    assert any(warning.startswith("cross-check") for warning in far)
