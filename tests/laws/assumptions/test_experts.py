"""Total beside active parameters: which were taken, and what to type for the others."""

import numpy as np

from tests.laws import planted
from tests.laws.assumptions.told import read, told

COLUMNS = {"loss": "loss_validation", "tokens": "step"}


def experts(runs):
    return [text for text in told("parametric", runs) if text.startswith("experts")]


def test_total_parameters_beside_active_ones():
    table = "routed_moe.csv"
    total = read("parametric", table, columns={**COLUMNS, "n_params": "total_parameter_count"})
    active = read("parametric", table, columns={**COLUMNS, "n_params": "dense_parameter_count"})
    (warning,) = experts(total)
    assert "n_params is column total_parameter_count, up to 196 times dense_parameter_count in 215 of 223" in warning
    assert warning.endswith("--n-params-column dense_parameter_count")
    assert experts(active) == []


def test_active_parameters_of_dense_runs_are_all():
    runs = planted.parametric_runs(1, 0.003, n=40)
    assert told("parametric", runs.with_column("n_params_active", runs["n_params"])) == []
    assert len(experts(runs.with_column("active_params", runs["n_params"] / 4))) == 1


def test_experts_without_active_parameters_are_asked_about():
    runs = planted.parametric_runs(1, 0.003, n=40)
    (warning,) = experts(runs.with_column("num_experts", np.where(np.arange(40) % 2, 1, 8)))
    assert "20 of 40 rows have up to 8 experts (num_experts); does n_params count all of them" in warning
    assert experts(runs.with_column("num_experts", np.ones(40))) == []
