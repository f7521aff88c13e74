"""Values that no run can have are refused by their row, whatever law would take them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from hybridtron.errors import UserError
from hybridtron.laws import LAWS, fit
from hybridtron.laws.data.ranges import RANGES
from tests.laws.planted_formulas import LAWS as PLANTED

QUICK = {"bootstrap": 0, "holdout": 0}


def planted_file(tmp_path, law, row=7, **changed):
    """Writes forty planted runs with the cells of one row changed, and returns the file."""
    runs = PLANTED[law].runs(5, 1e-3, n=40)
    columns = {name: values.copy() for name, values in runs.columns.items()}
    for name, value in changed.items():
        columns[name][row] = value
    file = tmp_path / "runs.csv"
    file.write_text(
        "\n".join(
            [",".join(columns), *(",".join(map(repr, map(float, one))) for one in zip(*columns.values(), strict=True))]
        )
    )
    return file


IMPOSSIBLE = {
    "more unique tokens than tokens": (
        "data-repetition", {"tokens": 1e9, "unique_tokens": 2e9},
        "unique_tokens is 2e+09 and tokens 1e+09; expected unique_tokens of at most tokens",
    ),
    "more active parameters than all": (
        "sparse", {"n_params": 1e9, "active_params": 2e9},
        "active_params is 2e+09 and n_params 1e+09; expected active_params of at most n_params",
    ),
    "a share of experts above one": (
        "optimal-sparsity", {"n_params": 1e9, "active_params": 2e9},
        "active_params is 2e+09 and n_params 1e+09; expected active_params of at most n_params",
    ),
    "a loss without a square": (
        "sparse", {"loss": 1e200}, "loss is 1e+200; expected a size from 1e-100 to 1e100, whose square is a number",
    ),
    "half an expert": ("routed-moe", {"experts": 0.5}, "experts is 0.5; expected a finite number of at least 1"),
}  # fmt: skip


@pytest.mark.parametrize(("law", "changed", "said"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_row_is_named_with_its_values(tmp_path, law, changed, said):
    file = planted_file(tmp_path, law, **changed)
    with pytest.raises(UserError, match=f"^{re.escape(f'{file}, line 9: {said}')}$"):
        fit(law, file, **QUICK)


def test_the_file_of_the_row_is_named_among_several(tmp_path):
    (tmp_path / "a").mkdir()
    good, bad = planted_file(tmp_path / "a", "sparse"), planted_file(tmp_path, "sparse", active_params=1e14)
    with pytest.raises(UserError, match=rf"^{bad}, line 9: active_params is 1e\+14"):
        fit("sparse", [good, bad], **QUICK)


def test_rows_that_a_filter_leaves_out_are_not_checked(tmp_path):
    file = planted_file(tmp_path, "sparse", active_params=1e14)
    assert fit("sparse", file, where="active_params<=n_params", **QUICK).n_points == 39


def test_the_other_impossible_rows_are_counted():
    runs = PLANTED["sparse"].runs(5, 1e-3, n=40)
    runs = runs.with_column("active_params", runs["n_params"] * np.where(np.arange(40) % 20 == 3, 2, 1))
    with pytest.raises(UserError, match=r"^data, line 4: .* of at most n_params \(and 1 more row like it\)$"):
        fit("sparse", runs, **QUICK)


def test_counts_rounded_to_whole_steps_may_lie_a_hundredth_above_their_limit():
    runs = PLANTED["data-repetition"].runs(5, 1e-3, n=40)
    rounded = runs.with_column("unique_tokens", np.minimum(runs["unique_tokens"] * 1.005, runs["tokens"] * 1.005))
    assert fit("data-repetition", rounded, **QUICK).n_points == 40


def test_a_batch_is_no_larger_than_the_run():
    rng = np.random.default_rng(0)
    columns = {name: np.exp(rng.uniform(10, 12, 30)) for name in LAWS["step"].columns}
    with pytest.raises(UserError, match=r"batch_tokens is .* and tokens .*; expected batch_tokens of at most tokens"):
        fit("step", columns | {"batch_tokens": 2 * columns["tokens"]}, **QUICK)


@pytest.mark.parametrize(
    ("law", "point", "said"),
    [
        ("data-repetition", "N=1B,D=20B,U=40B", "U is 4e+10 and D 2e+10; expected U of at most D"),
        ("sparse", "N=1B,active=2B,D=20B", "active is 2e+09 and N 1e+09; expected active of at most N"),
        ("routed-moe", "N=1B,experts=0.5", "experts is 0.5; expected a finite number of at least 1"),
        ("hybrid-ratio", "N=1B,D=20B,r=1.5", "r is 1.5; expected a share from 0 to 1"),
    ],
)
def test_impossible_points_are_refused_before_the_fit(law, point, said):
    with pytest.raises(UserError, match=f"^predict = .*: {re.escape(said)}$"):
        fit(law, PLANTED[law].runs(5, 1e-3, n=40), predict=point, **QUICK)


def test_limits_are_columns_of_the_law():
    """A typing error in a declaration would otherwise check nothing."""
    for law in LAWS.values():
        assert {*law.at_most, *law.at_most.values()} <= {*law.columns, *law.optional_columns}
    assert {"unique_tokens", "active_params", "batch_tokens"} == {name for law in LAWS.values() for name in law.at_most}
    assert {"experts", "depth", "ratio", "error"} <= RANGES.keys()
