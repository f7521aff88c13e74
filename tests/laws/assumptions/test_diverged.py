"""Runs whose loss lies far above that of smaller and shorter ones are told of by their lines."""

import numpy as np

from hybridtron.laws import fit
from tests.laws import planted
from tests.laws.assumptions.told import read, together, told


def diverged(loss_of, n=40):
    runs = planted.parametric_runs(4, 0.003, n=n)
    rows = np.argsort(runs["n_params"] * runs["tokens"])[-6:-3]
    loss = runs["loss"].copy()
    loss[rows] = loss_of(loss, rows)
    return runs.with_column("loss", loss), sorted(int(line) for line in runs.lines[rows])


def test_a_threshold_is_given_where_one_leaves_out_diverged_rows_alone():
    runs, lines = diverged(lambda loss, rows: 7.5)
    (warning,) = told("parametric", runs)
    assert warning.startswith("diverged: 3 of 40 rows")
    assert f"line {', '.join(map(str, lines))}; loss 7.5" in warning
    column, value = warning.partition('--where "')[2].rstrip('"').split("=")
    found = fit("parametric", runs.columns, where=[(column, value)], bootstrap=0, holdout=0)
    assert found.n_points == 37
    assert not any(text.startswith("diverged") for text in found.warnings)


def test_rows_that_no_threshold_parts_are_told_of_by_their_lines():
    runs, lines = diverged(lambda loss, rows: loss[rows] * 1.3)
    (warning,) = told("parametric", runs)
    assert f"line {', '.join(map(str, lines))};" in warning
    assert "column named outlier" in warning


def test_noise_and_kinds_of_runs_are_no_divergence():
    assert told("parametric", planted.parametric_runs(4, 0.02)) == []
    good, worse = (planted.parametric_runs(seed, 0.003, n=60) for seed in (1, 2))
    kinds = together(good, worse.with_column("loss", worse["loss"] * 1.3)).with_column("arch", ["a"] * 60 + ["b"] * 60)
    assert [text.partition(":")[0] for text in told("parametric", kinds)] == ["pooled"]
    overfit = read("parametric", "data_repetition.csv")
    assert not any(text.startswith("diverged") for text in told("parametric", overfit))
