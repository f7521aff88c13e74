"""The irreducible loss E is searched from zero on: a low one is found, and its interval reaches zero.

A short form of `benchmarks/laws.py --coverage`, with binomial bounds: a correct share fails once in a thousand.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from hybridtron.laws import Settings, fit
from hybridtron.laws.families.loss import overtraining, parametric
from hybridtron.laws.fitting.curves.curve import fit_curve
from tests.laws import planted

SETS = 12
LAWS = {
    "parametric": (parametric.build, 1e-3, planted.parametric_runs, planted.PARAMETRIC),
    "overtraining": (overtraining.build, math.inf, planted.overtraining_runs, planted.OVERTRAINING),
}


@pytest.mark.parametrize("floor", [0.0, 0.03])
@pytest.mark.parametrize("law", LAWS)
def test_a_low_floor_is_found_with_an_interval_in_every_set(law, floor):
    build, delta, make, truth = LAWS[law]
    truth = truth | {"E": floor}
    found = [
        fit_curve(
            build, make([71, i], planted.NOISES[i % 4], truth=truth), Settings(bootstrap=100, seed=i), delta
        )
        for i in range(SETS)
    ]  # fmt: skip
    estimates = np.array([one.parameters["E"] for one in found])
    spans = np.array([one.intervals["E"] for one in found])
    hits = (spans[:, 0] <= floor) & (floor <= spans[:, 1])
    assert hits.sum() >= binom.ppf(1e-3, SETS, 0.95), spans
    assert (estimates >= 0).all()
    assert abs(np.median(estimates) - floor) < 0.01
    assert not any(one.weak for one in found)


def test_a_fit_that_ends_at_zero_says_so_and_its_interval_begins_there():
    runs = planted.parametric_runs([71, 0], 0.001, truth=planted.PARAMETRIC | {"E": 0.0})
    found = fit("parametric", runs, bootstrap=100, holdout=0)
    assert found.parameters["E"] == 0.0
    assert found.intervals["E"][0] == 0.0 < found.intervals["E"][1] < 0.01
    assert any("irreducible loss E ends at its bound of zero" in warning for warning in found.warnings)
    assert found.parameters["alpha"] == pytest.approx(planted.PARAMETRIC["alpha"], rel=0.01)


def test_the_derivative_by_the_floor_is_that_of_the_curve_at_zero_too():
    problem = parametric.build(planted.parametric_runs(1, 0.01), 1e-3).problem
    theta = np.array([[0.0, -1.0, -1.5, 0.3, 0.3]])
    value, derivative = problem.jacobian(theta)
    step = 1e-6
    above, _ = problem.jacobian(theta + step * np.eye(5)[0])
    np.testing.assert_allclose(derivative[:, 0], (above - value) / step, rtol=1e-5)
