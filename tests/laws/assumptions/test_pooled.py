"""Kinds of runs that share one law are told of where their losses differ at equal size, and only there."""

import re

import numpy as np
import pytest

from hybridtron.laws import fit
from tests.laws import planted
from tests.laws.assumptions.told import read, together, told


def two_kinds(column, values, shift, n=60):
    parts = [planted.parametric_runs(seed, 0.003, n=n) for seed in (1, 2)]
    parts[1] = parts[1].with_column("loss", parts[1]["loss"] * (1 + shift))
    runs = together(*parts)
    return runs.with_column(column, [values[0]] * n + [values[1]] * n)


@pytest.mark.parametrize(
    ("column", "values", "typed"),
    [
        ("arch", ["transformer", "hybrid"], "--where arch=transformer, or each with its own E, A and B with --arch"),
        ("seq_len", [2048, 8192], "--where seq_len=2048, or each .* with --arch-column seq_len --architectures offset"),
        ("dataset", ["web", "code"], "--where dataset=web"),
        ("data set", ["the web", "code"], "--where 'data set=the web', or each .* with --arch-column 'data set' "),
        ("seq_len", [1048576, 2097153], "--where seq_len=1048576, or each"),
    ],
)
def test_kinds_whose_losses_differ_are_told_of(column, values, typed):
    (warning,) = told("parametric", two_kinds(column, values, 0.03))
    assert warning.startswith("pooled: rows of 2 ")
    assert re.search(typed, warning)
    assert re.search(r"losses lie (2\.[89]|3(\.[01])?) % apart", warning)
    assert told("parametric", two_kinds(column, values, 0.0)) == []


def test_kinds_that_differ_in_slope_alone_are_told_of():
    runs = two_kinds("arch", ["a", "b"], 0.0)
    tilt = (runs["n_params"] / np.exp(np.log(runs["n_params"]).mean())) ** np.where(runs["arch"] == "a", -0.02, 0.02)
    assert [text.partition(":")[0] for text in told("parametric", runs.with_column("loss", runs["loss"] * tilt))] == [
        "pooled"
    ]


def test_a_law_of_each_architecture_is_not_told_of_them():
    runs = two_kinds("arch", ["a", "b"], 0.03)
    assert told("parametric", runs, options={"architectures": "offset"}) == []
    assert told("state-optimal", read("state-optimal", "state_optimal_synthetic.csv")) == []


@pytest.mark.parametrize(
    ("law", "name", "column"),
    [
        ("isoflop", "porian_isoflop.csv", "experiment"),
        ("parametric", "porian_isoflop.csv", "experiment"),
        ("isoflop", "marin_misfitting_isoflop.csv", "dataset"),
        ("parametric", "state_optimal_synthetic.csv", "arch"),
    ],
)
def test_published_tables_of_several_recipes(law, name, column):
    pooled = [text for text in told(law, read(law, name)) if text.startswith("pooled")]
    assert len(pooled) == 1
    assert f"--where {column}=" in pooled[0]


def test_one_experiment_of_a_published_table_is_not_pooled():
    assert told("isoflop", read("isoflop", "porian_isoflop.csv", where=[("experiment", "4_cosine_decay")])) == []


def test_few_rows_of_two_architectures_are_told_of_without_a_number():
    runs = two_kinds("arch", ["a", "b"], 0.0, n=5)
    assert [text.partition(";")[0] for text in told("parametric", runs)] == [
        "pooled: rows of 2 architectures (a, b) share one law"
    ]


def test_the_verdict_does_not_compare_a_pooled_exponent():
    """Most runs of the worse architecture are large."""
    clean = planted.parametric_runs(1, 0.002, n=60)
    names = np.where((clean["n_params"] > 7e8) ^ (np.arange(60) % 4 == 0), "b", "a")
    pooled = clean.with_column("loss", clean["loss"] * np.where(names == "b", 1.04, 1.0)).with_column("arch", names)
    settings = {"bootstrap": 100, "holdout": 0}
    alone, mixed = (" ".join(fit("parametric", runs, **settings).verdict) for runs in (clean, pooled))
    assert "Equal proportion (a = 0.5) lies outside the interval" in alone
    assert "seem to break" not in alone
    assert mixed.startswith("These rows seem to break what the law assumes (pooled; see the warnings)")
    assert "lies outside" not in mixed
    assert "Whether parameters and tokens should grow equally (a = 0.5) is left open" in mixed
