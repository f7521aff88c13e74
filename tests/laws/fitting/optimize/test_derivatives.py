"""Derivatives carried along by a formula are those of the complex step, and of the formula."""

from __future__ import annotations

import numpy as np
import pytest

from hybridtron.laws.families.loss import precision
from hybridtron.laws.families.registry import LAWS
from hybridtron.laws.fitting.optimize.derivatives import by_complex_step, differentiate
from hybridtron.laws.fitting.optimize.dual import Dual, parameters
from tests.laws import planted
from tests.laws.planted_formulas import LAWS as PLANTED

X = np.linspace(0.5, 3.0, 7)
THETA = np.random.default_rng(0).uniform(0.2, 0.9, (5, 2))
OPERATIONS = {
    "sums and differences": lambda x, a, b: 1 + a - b * x - (-a) + (+b) - 2,
    "products and quotients": lambda x, a, b: a * b / (x + a) * 2 / b,
    "powers of each other": lambda x, a, b: x**a + a**x + a**b + a**2,
    "exponentials": lambda x, a, b: np.exp(-a * x) + np.expm1(b * x) + np.tanh(a),
    "logarithms": lambda x, a, b: np.log(a + x) + np.log1p(b) + np.log10(a * x) ** 2 + 3,
    "roots and squares": lambda x, a, b: np.sqrt(a * x) + np.square(b),
    "the smaller and the larger": lambda x, a, b: np.minimum(a * x, b) + np.maximum(x, a + b) + np.maximum(0.1, a),
    "a choice": lambda x, a, b: np.where(a * x > b, a**2, b * x) + np.where(x > 1, a, 0.0),
}


@pytest.mark.parametrize("formula", OPERATIONS.values(), ids=OPERATIONS)
def test_each_operation_has_the_slopes_of_the_complex_step(formula):
    def evaluate(coordinates, columns):
        return formula(columns["x"], *coordinates)

    assert isinstance(evaluate(parameters(THETA), {"x": X}), Dual)
    value, slopes = by_complex_step(evaluate, {"x": X}, THETA)
    found, derivatives = differentiate(evaluate, {"x": X}, THETA)
    np.testing.assert_allclose(found, np.log(np.where(value > 0, value, np.nan)), rtol=1e-12)
    expected = np.stack([slopes[0], slopes[1]], axis=1) / value[:, None]
    np.testing.assert_allclose(derivatives, np.where(np.isnan(found)[:, None], 0, expected), rtol=1e-9, atol=1e-14)


def test_powers_of_zero_are_zero_at_any_exponent():
    """As of a share: a hybrid's without attention, or of one of attention alone."""

    def evaluate(coordinates, columns):
        a, b = coordinates
        return (a * columns["x"]) ** b + (1 - columns["x"]) ** a + a * b

    a, b = THETA.T[:, :, None]
    _, found = differentiate(evaluate, {"x": np.array([0.0, 1.0])}, THETA)
    at_none, at_all = 1 + a * b, a**b + a * b
    np.testing.assert_allclose(found[:, 1], np.hstack([a / at_none, (a**b * np.log(a) + a) / at_all]), rtol=1e-12)
    np.testing.assert_allclose(found[:, 0, 1:], (b * a ** (b - 1) + b) / at_all, rtol=1e-12)


def test_an_operation_without_a_rule_takes_the_complex_step():
    def evaluate(coordinates, columns):
        return 2 + np.sinh(coordinates[0]) * columns["x"]

    derivatives = differentiate(evaluate, {"x": X}, THETA[:, :1])[1]
    a = THETA[:, :1]
    np.testing.assert_allclose(derivatives[:, 0], np.cosh(a) * X / (2 + np.sinh(a) * X), rtol=1e-12)


@pytest.mark.parametrize("law", [*PLANTED, "depth-width"])
def test_every_law_of_one_formula_carries_its_derivatives(law, monkeypatch):
    runs = planted.depth_width_runs(3, 1e-3, 30) if law == "depth-width" else PLANTED[law].runs(3, 1e-3, n=30)
    problem = (precision.law_of(*precision.BITS) if law == "precision" else LAWS[law]).build(runs, 1e-3).problem
    theta = np.random.default_rng(1).uniform(problem.lower, problem.upper, (20, len(problem.lower)))
    with monkeypatch.context() as without:
        without.setattr("hybridtron.laws.fitting.optimize.derivatives._carried", lambda *given: None)
        value, slopes = problem.jacobian(theta)
    monkeypatch.setattr("hybridtron.laws.fitting.optimize.derivatives.by_complex_step", None)  # no longer needed
    found, derivatives = problem.jacobian(theta)
    np.testing.assert_allclose(found, value, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(derivatives, slopes, rtol=1e-6, atol=1e-9)
