"""Runs: a table whose rows know where they came from."""

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs


@pytest.fixture
def runs():
    return Runs.of("runs.csv", n_params=[1e6, 2e6, 3e6], loss=[4.0, 3.5, 3.0], arch=["a", "b", "a"])


def test_filtering_keeps_the_line_of_every_row(runs):
    assert list(runs.where("arch", "a").lines) == [1, 3]
    assert list(runs.where("n_params", "2e6").lines) == [2]
    assert list(runs.take(np.array([2, 0]))["loss"]) == [3.0, 4.0]


def test_splitting_gives_one_table_per_value_in_order_of_appearance(runs):
    assert {name: len(part) for name, part in runs.split("arch").items()} == {"a": 2, "b": 1}
    assert list(runs.split("n_params")) == ["1e+06", "2e+06", "3e+06"]


def test_a_replaced_column_leaves_the_original_as_it_was(runs):
    assert list(runs.with_column("loss", [1, 2, 3])["loss"]) == [1, 2, 3]
    assert list(runs["loss"]) == [4.0, 3.5, 3.0]


def test_a_missing_column_is_named_with_the_nearest_one(runs):
    with pytest.raises(UserError, match=r"runs\.csv: no column 'n_parms'; nearest: n_params"):
        runs["n_parms"]


def test_a_text_value_for_a_numeric_column_is_refused(runs):
    with pytest.raises(UserError, match="column 'loss' is numeric; 'low' is not a number"):
        runs.where("loss", "low")


@pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "nan"), (-1.0, "-1"), (0.0, "0"), (float("inf"), "inf")])
def test_require_names_the_line_of_a_broken_value(bad, shown):
    runs = Runs.of("runs.csv", loss=[3.0, bad, 2.0])
    with pytest.raises(UserError, match=rf"^runs\.csv, line 2: loss is {shown}; expected a finite number above zero$"):
        runs.require("loss")


def test_require_counts_further_broken_rows():
    with pytest.raises(UserError, match=r"line 1: loss is -1; .* \(and 2 more rows like it\)$"):
        Runs.of("runs.csv", loss=[-1.0, 0.0, -2.0]).require("loss")


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(UserError, match=r"columns of lengths \[2, 3\]"):
        Runs.of(loss=[1, 2], tokens=[1, 2, 3])
