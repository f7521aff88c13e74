"""The outer-exponent law beside the parametric one."""

from __future__ import annotations

import pytest

from hybridtron.laws import fit
from tests.laws.planted_formulas import LAWS as PLANTED


@pytest.mark.parametrize(("gamma", "words"), [(1.0, "compatible with these data"), (0.4, "outside the interval")])
def test_an_outer_exponent_is_compared_with_the_parametric_law(gamma, words):
    one = PLANTED["outer-exponent"]
    scale = {"A": 400.0, "B": 1500.0, "alpha": 0.34, "beta": 0.36}
    inner = {name: value ** (1 / gamma) if name in "AB" else value / gamma for name, value in scale.items()}
    truth = {"E": 1.8, "gamma": gamma, **inner}
    verdict = fit("outer-exponent", one._replace(truth=truth).runs(4, 0.0003, n=200), bootstrap=100, holdout=0).verdict
    assert any(words in sentence for sentence in verdict)
