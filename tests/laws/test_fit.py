"""`fit` for whatever holds the runs, with settings as keywords."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import Runs, Settings, fit
from tests.laws import planted

DATA = Path(__file__).parent / "data"
CHINCHILLA = DATA / "chinchilla_fig4.csv"
QUICK = {"bootstrap": 100, "holdout": 0}


class Frame:
    """As much of a pandas or polars data frame as `fit` uses: names in `columns`, a column by its name."""

    def __init__(self, columns):
        self._columns = columns
        self.columns = list(columns)

    def __getitem__(self, name):
        return self._columns[name]


def chinchilla() -> dict[str, np.ndarray]:
    """The table as arrays of numbers."""
    with CHINCHILLA.open(newline="") as file:
        rows = list(csv.DictReader(file))
    numeric = ("n_params", "tokens", "loss", "in_fit")
    return {name: np.array([float(row[name]) for row in rows]) for name in numeric}


@pytest.mark.parametrize("kind", [dict, Frame, pyarrow.table], ids=["dict", "data frame", "pyarrow"])
def test_tables_in_memory_give_the_numbers_of_their_csv(kind):
    settings = {**QUICK, "where": {"in_fit": 1}, "predict": {"N": 7e10, "D": 1.4e12}}
    expected = fit("parametric", str(CHINCHILLA), **settings)
    found = fit("parametric", kind(chinchilla()), **settings)
    assert found.parameters == expected.parameters
    assert found.intervals == expected.intervals
    assert found.predictions == expected.predictions
    assert found.n_points < len(chinchilla()["loss"])


def test_synonyms_lists_and_chosen_columns_are_columns_too():
    columns = chinchilla()
    renamed = {"N": list(columns["n_params"]), "D": list(columns["tokens"]), "nll": list(columns["loss"])}
    found = fit("parametric", renamed, loss_column="nll", bootstrap=0, holdout=0)
    assert found.parameters == fit("parametric", CHINCHILLA, bootstrap=0, holdout=0).parameters
    assert found.parameters == fit("parametric", renamed, columns={"loss": "nll"}, bootstrap=0, holdout=0).parameters


def test_several_sources_are_one_table():
    columns = chinchilla()
    halves = [{name: values[part] for name, values in columns.items()} for part in (slice(100), slice(100, None))]
    assert fit("parametric", halves, **QUICK).parameters == fit("parametric", [CHINCHILLA], **QUICK).parameters


def test_keywords_go_before_a_settings_object():
    runs = planted.isoflop_runs(1, 0.003)
    asked = fit("isoflop", runs, Settings(bootstrap=64, seed=1), seed=2, window=6.0).settings
    assert (asked["bootstrap"], asked["seed"], asked["window"]) == (64, 2, 6.0)


def test_runs_are_filtered_like_any_table():
    runs = planted.isoflop_runs(1, 0.003).with_column("recipe", ["a"] * 24 + ["b"] * 24)
    assert fit("isoflop", runs, where={"recipe": "a"}, window=np.inf, bootstrap=0).n_points == 24


def test_the_context_of_the_state_is_an_option_of_the_law_too():
    verdict = fit("state-optimal", DATA / "state_optimal_synthetic.csv", context=2048, bootstrap=0).verdict
    assert any("2048 tokens" in sentence for sentence in verdict)


def test_a_report_holds_the_page_the_numbers_and_the_plots(tmp_path):
    found = fit("learning-rate", DATA / "learning_rate_sweep.csv", bootstrap=0)
    page = found.report(tmp_path / "lr")
    assert page == tmp_path / "lr" / "report.html"
    assert "learning-rate" in page.read_text()
    assert json.loads((tmp_path / "lr" / "fit.json").read_text()) == json.loads(json.dumps(found.to_json()))
    assert list((tmp_path / "lr").glob("*.png"))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"bootstraps": 10}, r"bootstraps: no setting of law parametric; .*nearest: bootstrap\)"),
        ({"los_column": "loss"}, r"los_column: no setting .*nearest: loss_column\)"),
        ({"window": 4.0}, "window: no setting of law parametric"),
        ({"columns": {"los": "loss"}}, "columns: no canonical column 'los'; .*nearest: loss"),
        ({"bootstrap": -1}, "bootstrap = -1: expected a whole number of at least 0"),
        ({"jobs": "two"}, "jobs = 'two': expected a whole number of at least 1"),
        ({"predict": {"N": 1e9}}, "predict = .* two of N, D, C, M"),
        ({"where": {"infit": 1}}, "data: no column 'infit'; nearest: in_fit"),
        ({"group": "runs"}, "no column 'runs'"),
    ],
)
def test_bad_keywords_are_named_with_the_nearest(keywords, message):
    with pytest.raises(UserError, match=message) as raised:
        fit("parametric", chinchilla(), **keywords)
    assert "--" not in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"n_params": [1e8, 2e8], "tokens": [1e9, 2e9], "loss": [3.0, None]}, "data, row 2: loss is empty"),
        ({"n_params": [1e8, 2e8], "tokens": [1e9, 2e9], "loss": [3.0, np.nan]}, "data, row 2: loss is empty"),
        ({"n_params": [1e8], "tokens": [1e9, 2e9], "loss": [3.0, 2.0]}, r"columns of lengths \[1, 2\]"),
        ({"n_params": [[1e8]], "tokens": [1e9], "loss": [3.0]}, "column 'n_params' has 2 dimensions"),
        ({"n_params": [1e8], "tokens": [1e9]}, r"no column 'loss' \(nor 'ppl'\); choose with loss_column"),
        ({}, "data: no rows"),
        ([], r"data = \[\]: expected a table"),
        (7, "data is of type int; expected a data frame"),
        (Runs.of(n_params=[1e8], tokens=[1e9], los=[3.0]), "no column 'loss'"),
    ],
)
def test_data_that_cannot_be_read_are_named(data, message):
    with pytest.raises(UserError, match=message):
        fit("parametric", data)


@pytest.mark.parametrize("where", ["in_fit=1", ["in_fit=1"], [("in_fit", 1)]])
def test_rows_may_be_chosen_by_text_and_by_pairs(where):
    assert fit("parametric", CHINCHILLA, where=where, **QUICK).n_points == chinchilla()["in_fit"].sum()


def test_rows_may_be_left_out():
    columns = chinchilla()
    expected = (columns["in_fit"] != 0).sum()
    assert fit("parametric", columns, where="in_fit!=0", **QUICK).n_points == expected


@pytest.mark.parametrize("predict", ["N=70B,D=1.4T", ["N=70B, D=1.4e12"], {"N": "70B", "D": 1.4e12}])
def test_points_may_be_text(predict):
    expected = fit("parametric", chinchilla(), predict={"N": 7e10, "D": 1.4e12}, **QUICK).predictions
    assert fit("parametric", chinchilla(), predict=predict, **QUICK).predictions == expected


@pytest.mark.parametrize("predict", ["N=1e9", "N", "N=many,D=1e9", [5], ["N=-1,D=1e9"], {"N": None}, [{"C": np.inf}]])
def test_points_that_cannot_be_read_are_named(predict):
    with pytest.raises(UserError, match=r"^predict = .*expected (NAME=NUMBER|two of|a finite number above zero)"):
        fit("parametric", chinchilla(), predict=predict, **QUICK)


def test_data_given_twice_do_not_narrow_an_interval():
    once, twice = (fit("parametric", [chinchilla()] * count, bootstrap=100, holdout=0) for count in (1, 2))
    assert (twice.n_points, twice.intervals) == (once.n_points, once.intervals)
    assert any(warning.startswith("repeated: ") for warning in twice.warnings)


def test_other_choices_of_rows_are_refused():
    with pytest.raises(UserError, match="where = in_fit: no comparison; expected COL=VALUE"):
        fit("parametric", CHINCHILLA, where="in_fit")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("loss<=", "where = loss<=: no value; expected"),
        ("<=3", "where = <=3: no column"),
        ("=1", "where = =1: no column"),
    ],
)
def test_a_filter_that_lacks_a_part_is_refused(where, message):
    with pytest.raises(UserError, match=message):
        fit("parametric", CHINCHILLA, where=["in_fit=1", where])
