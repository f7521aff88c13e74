"""The downstream law, chained after a law of the loss."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hybridtron.laws import Settings, fit
from tests.laws import planted


def test_a_chain_with_an_unsure_loss_gives_no_interval_of_the_error():
    """Ten runs are enough for the three parameters of the error and too few for the five of the loss."""
    runs = planted.parametric_runs(3, 0.002, n=10)
    truth, noise = planted.DOWNSTREAM, 1e-4 * np.random.default_rng(1).standard_normal(10)
    error = truth["epsilon"] - truth["k"] * np.exp(-truth["gamma"] * runs["loss"]) + noise
    settings = Settings(bootstrap=100, holdout=0, predict=[{"N": 3e9, "D": 6e10}, {"L": 2.5}])
    found = fit("downstream", runs.with_column("error", error), settings)
    chained, direct = (point["error_interval"] for point in found.predictions)
    assert chained is None
    assert direct is not None
    assert any(warning.startswith("loss law: few points") for warning in found.warnings)


@pytest.mark.parametrize("loss_law", ["parametric", "overtraining"])
def test_downstream_is_chained_after_a_loss_law(loss_law):
    runs = planted.parametric_runs(3, 0.002)
    truth = planted.DOWNSTREAM
    error = truth["epsilon"] - truth["k"] * np.exp(-truth["gamma"] * runs["loss"])
    settings = Settings(bootstrap=64, predict=[{"N": 3e9, "D": 6e10}], options={"loss_law": loss_law})
    found = fit("downstream", runs.with_column("error", error), settings).predictions[0]
    loss = planted.parametric_loss(3e9, 6e10, **planted.PARAMETRIC)
    expected = truth["epsilon"] - truth["k"] * math.exp(-truth["gamma"] * loss)
    assert found["error"] == pytest.approx(expected, rel=0.01)
    low, high = found["error_interval"]
    assert low < found["error"] < high
