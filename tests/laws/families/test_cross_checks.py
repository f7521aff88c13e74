"""Other methods on the same rows: variable projection beside the parametric law, and the bias of parabolas."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hybridtron.laws import Settings, fit
from hybridtron.laws.fitting.optimize.variable_projection import inner, project, surface
from tests.laws import planted

SYMMETRIC = {"E": 1.8, "A": 400.0, "B": 1500.0, "alpha": 0.35, "beta": 0.35}
ASYMMETRIC = {"E": 1.8, "A": 400.0, "B": 30000.0, "alpha": 0.3, "beta": 0.5}
EXACT = Settings(bootstrap=0, holdout=0)
WIDE = Settings(bootstrap=0, holdout=0, options={"window": math.inf})


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


def test_parabolas_on_symmetric_valleys_have_no_bias():
    found = fit("isoflop", planted.isoflop_runs(1, 0.0, truth=SYMMETRIC), WIDE).cross_checks["parabola_bias"]
    assert found["bias"] == pytest.approx({"a": 0.0, "b": 0.0}, abs=1e-4)
    assert [one["N_ratio"] for one in found["compute_optimal"]] == pytest.approx([1.0, 1.0], abs=1e-3)


def test_parabolas_on_asymmetric_valleys_are_off_by_the_vertex_of_the_valley():
    """With u = log(N / N_opt) every valley is beta exp(-alpha u) + alpha exp(beta u), up to its depth."""
    u, alpha, beta = np.log(np.geomspace(0.25, 4, 8)), ASYMMETRIC["alpha"], ASYMMETRIC["beta"]
    bend, slope, _ = np.polyfit(u, beta * np.exp(-alpha * u) + alpha * np.exp(beta * u), 2)
    off = math.exp(-slope / (2 * bend))
    runs = planted.isoflop_runs(1, 0.0, truth=ASYMMETRIC)
    found = fit("isoflop", runs, Settings(bootstrap=0, holdout=0, predict=[{"C": 1e23}], options=WIDE.options))
    entry = found.cross_checks["parabola_bias"]
    assert abs(off - 1) > 0.03
    assert [one["C"] for one in entry["compute_optimal"]] == pytest.approx([3e20, 3e21, 1e23])
    assert [one["N_ratio"] for one in entry["compute_optimal"]] == pytest.approx([off] * 3, rel=2e-3)
    assert entry["bias"]["a"] == pytest.approx(0, abs=1e-4)


def test_sizes_that_drift_about_the_optimum_bias_the_exponent_and_are_warned_of():
    drift = np.linspace(-1.0, 1.0, len(planted.SIX_BUDGETS))
    runs = planted.isoflop_runs(1, 0.0002, truth=ASYMMETRIC, shift=drift)
    fitted = fit("isoflop", runs, Settings(bootstrap=100, holdout=0, options=WIDE.options))
    entry = fitted.cross_checks["parabola_bias"]
    assert abs(entry["bias"]["a"]) > 0.01
    measured = fitted.parameters["a"] - planted.isoflop_truth(ASYMMETRIC)["a"]
    assert measured == pytest.approx(entry["bias"]["a"], abs=0.01)
    assert any(warning.startswith("parabola bias") for warning in fitted.warnings)
    assert any(sentence.startswith("Parabolas on these sizes") for sentence in fitted.verdict)
