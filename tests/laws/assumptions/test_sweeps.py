"""Sweeps at one size and length are told of; the best of each cell is what a law of size is about."""

import numpy as np
import pytest

from hybridtron.laws import fit
from tests.laws import planted
from tests.laws.assumptions.told import read, told


def swept(column="lr", cells=17, rates=9):
    """A table of cells of equal size and length, each with a sweep whose best runs follow the planted law."""
    best = planted.parametric_runs(3, 0.001, n=cells)
    distance = np.tile(np.linspace(-2, 2, rates), cells)
    rows = best.take(np.repeat(np.arange(cells), rates))
    tokens = rows["tokens"] * (1 - 0.002 * np.abs(distance))  # whole steps
    loss = rows["loss"] * (1 + 0.03 * distance**2)
    return rows.with_column("loss", loss).with_column(column, np.exp(distance)).with_column("tokens", tokens)


@pytest.mark.parametrize("column", ["lr", "peak_lr", "batch_size", "learningRate", "global_bs"])
def test_a_sweep_is_told_of_whatever_its_column_is_called(column):
    (warning,) = told("parametric", swept(column))
    assert warning.startswith(
        f"sweep: 153 of 153 rows lie in 17 cells of equal n_params and tokens and differ in {column}"
    )
    assert "--keep-best" in warning


def test_single_runs_of_each_size_are_no_sweep():
    runs = planted.parametric_runs(3, 0.001, n=60)
    assert told("parametric", runs.with_column("lr", np.linspace(1e-4, 1e-2, 60))) == []
    repeated = runs.take(np.append(np.arange(60), 0)).with_column("lr", np.linspace(1e-4, 1e-2, 61))
    assert told("parametric", repeated) == []
    assert told("overtraining", read("overtraining", "gadre_overtraining.csv", columns={"loss": "loss_c4_val"})) == []


def test_the_law_of_learning_rates_reads_the_sweep():
    assert told("learning-rate", read("learning-rate", "learning_rate_sweep.csv")) == []
    assert told("isoflop", read("isoflop", "learning_rate_sweep.csv"))[0].startswith(
        "sweep: 18 of 18 rows lie in 3 cells"
    )


def test_the_best_of_each_cell_follow_the_law():
    table = swept()
    found = fit("parametric", table, keep_best=True, bootstrap=0)
    assert found.n_points == 17
    assert not any(warning.startswith("sweep") for warning in found.warnings)
    share = found.parameters["beta"] / (found.parameters["alpha"] + found.parameters["beta"])
    assert share == pytest.approx(planted.isoflop_truth()["a"], abs=0.03)
