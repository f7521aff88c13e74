"""How far parabolas miss a law that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hybridtron.laws import Settings, fit
from tests.laws import planted

SYMMETRIC = {"E": 1.8, "A": 400.0, "B": 1500.0, "alpha": 0.35, "beta": 0.35}
ASYMMETRIC = {"E": 1.8, "A": 400.0, "B": 30000.0, "alpha": 0.3, "beta": 0.5}
WIDE = Settings(bootstrap=0, holdout=0, options={"window": math.inf})


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
