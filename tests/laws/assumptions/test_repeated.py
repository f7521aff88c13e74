"""Data seen more than once are told of, with the filter that keeps single epochs."""

import shlex

import numpy as np
import pytest

from hybridtron.laws import fit
from tests.laws import planted
from tests.laws.assumptions.told import DATA, read, told


def test_repeated_data_are_told_of_and_the_filter_keeps_single_epochs():
    (warning,) = told("parametric", read("parametric", "data_repetition.csv"))
    assert warning.startswith("repeated data: 153 of 182 rows see their data more than once (up to 9e+03 times")
    typed = shlex.split(warning.partition("single epochs with ")[2])
    assert typed == ["--where", "unique_tokens>=tokens"]
    column = typed[1].split("=", 1)
    assert told("parametric", read("parametric", "data_repetition.csv", where=[tuple(column)])) == []


def test_the_exponent_of_repeated_data_is_not_compared():
    """Counted as new, repeated tokens push a to 0.69; the runs of one epoch are compatible with 0.5."""
    settings = {"bootstrap": 200, "holdout": 0}
    every = fit("parametric", DATA / "data_repetition.csv", **settings)
    single = fit("parametric", DATA / "data_repetition.csv", where="unique_tokens>=tokens", **settings)
    assert every.parameters["beta"] / (every.parameters["alpha"] + every.parameters["beta"]) == pytest.approx(
        0.689, abs=0.001
    )
    assert "lies outside" not in " ".join(every.verdict)
    assert "repeated data" in every.verdict[0]
    assert single.n_points == 29
    assert not any("seem to break" in sentence for sentence in single.verdict)


@pytest.mark.parametrize(
    ("column", "typed"),
    [("unique_tokens", '--where "epochs<=1.01"'), ("num_epochs", '--where "num_epochs<=1.01"')],
)
def test_tokens_rounded_up_to_whole_steps_are_kept_as_one_epoch(column, typed):
    runs = planted.parametric_runs(1, 0.003, n=40)
    seen = np.tile([1.0, 1.004, 1.008, 4.0], 10)
    table = runs.columns | {column: seen if "epochs" in column else runs["tokens"] / seen}
    found = fit("parametric", table, bootstrap=0, holdout=0)
    (warning,) = (text for text in found.warnings if text.startswith("repeated data: 10 of 40"))
    assert warning.endswith(typed)
    kept = fit("parametric", table, where=shlex.split(typed)[1], bootstrap=0, holdout=0)
    assert kept.n_points == 30
    assert not any(text.startswith("repeated data") for text in kept.warnings)


def test_a_filter_that_loses_rounded_epochs_says_so():
    runs = planted.parametric_runs(1, 0.003, n=40)
    tokens = runs["tokens"] / np.tile([1.0, 1.004, 4.0, 2.0], 10)
    (warning,) = told("parametric", runs.with_column("my_unique_tokens", tokens))
    assert warning.endswith('"my_unique_tokens>=tokens", which leaves out 10 of one epoch and up to 1 % more')


@pytest.mark.parametrize(
    ("column", "once", "typed"),
    [("unique_tokens", True, ""), ("uniqueTokens", False, '--where "uniqueTokens>=tokens"'), ("epochs", True, ""),
     ("num_epochs", False, '--where "num_epochs<=1"')],
)  # fmt: skip
def test_columns_of_unique_tokens_and_of_epochs(column, once, typed):
    runs = planted.parametric_runs(1, 0.003, n=40)
    seen = np.where(np.arange(40) % 2, 1.0, 1.0 if once else 4.0)
    found = told("parametric", runs.with_column(column, seen if "epochs" in column else runs["tokens"] / seen))
    assert [text.endswith(typed) for text in found] == ([] if once else [True])
