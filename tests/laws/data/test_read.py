"""Reading CSV and parquet: the right columns under their usual names, and an error that finds the broken row."""

import math
import re
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from pyarrow import csv, parquet

from hybridtron.errors import UserError
from hybridtron.laws.data.read import read_runs

DATA = Path(__file__).parent
NEEDED = ("n_params", "tokens", "loss")


@pytest.fixture
def table(tmp_path):
    """Writes lines below a header and returns the file."""

    def write(*lines, header="n_params,tokens,loss", name="runs.csv"):
        file = tmp_path / name
        file.write_text("\n".join([header, *lines]) + "\n")
        return file

    return write


def refusal(*arguments, **keywords) -> str:
    with pytest.raises(UserError) as caught:
        read_runs(*arguments, **keywords)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- what is read


def test_columns_are_numbers_where_all_cells_are_and_text_elsewhere():
    runs = read_runs([DATA / "gadre_overtraining.csv"], ("n_params",))
    assert runs["n_params"].dtype == np.float64
    assert runs["train_set"][0] == "redpajama"


def test_names_of_architectures_are_text_also_where_they_look_like_numbers():
    runs = read_runs([DATA / "gemstones.csv"], NEEDED, ("arch",), columns={"arch": "depth"}, group="run")
    assert set(runs["arch"]) > {"12", "28"}


def test_lines_are_those_of_the_file_whatever_is_filtered_or_blank(table):
    file = table("1e6,1e7,4.0", "", "2e6,2e7,3.5", "3e6,3e7,3.0")
    runs = read_runs([file], NEEDED, where=[("n_params", "3000000")])
    assert list(runs.lines) == [5]


def test_usual_names_of_columns_are_understood_and_noted(table):
    reading = read_runs([table("1e6,1e7,4.0", header="params,D,val_loss")], NEEDED)
    assert [reading[name][0] for name in NEEDED] == [1e6, 1e7, 4.0]
    assert reading.notes == ("n_params is column params", "tokens is column D", "loss is column val_loss")


def test_letter_case_and_marks_of_a_name_do_not_matter(table):
    file = table("1e6,1e7,4.0,5.0", header="N_Params,Tokens,Loss,val_loss")
    assert [read_runs([file], NEEDED)[name][0] for name in NEEDED] == [1e6, 1e7, 4.0]


def test_a_chosen_column_wins_over_the_usual_name(table):
    file = table("1e6,1e7,4.0,5.0", header="n_params,tokens,loss,loss_c4")
    assert read_runs([file], NEEDED, columns={"loss": "loss_c4"})["loss"][0] == 5.0


@pytest.mark.parametrize(
    ("header", "line", "needed", "expected"),
    [
        ("n_params,tokens", "2,3", "flops", 36),
        ("n_params,flops", "2,36", "tokens", 3),
        ("n_params,tokens", "2,3", "M", 1.5),
        ("ppl", "20", "loss", math.log(20)),
    ],
)
def test_a_missing_column_is_derived_and_the_formula_noted(table, header, line, needed, expected):
    reading = read_runs([table(line, header=header)], (needed,))
    assert reading[needed][0] == pytest.approx(expected)
    assert reading.notes[0].startswith(f"{needed} = ")


def test_several_files_become_one_table(table):
    first, second = table("1e6,1e7,4.0", name="a.csv"), table("2e6,2e7,3.0", name="b.csv")
    runs = read_runs([first, second], NEEDED)
    assert list(runs["loss"]) == [4.0, 3.0]
    assert runs.source == f"{first} and 1 more"


def test_filters_are_applied_before_anything_is_checked(table):
    file = table("1e6,1e7,4.0,1", "2e6,2e7,diverged,0", header="n_params,tokens,loss,keep")
    assert len(read_runs([file], NEEDED, where=[("keep", "1")])) == 1


def test_every_shared_file_is_read():
    for file in sorted(DATA.glob("*.csv")):
        assert len(read_runs([file], ())) == len(file.read_text().splitlines()) - 1


def test_parquet_gives_what_csv_gives(tmp_path):
    source = DATA / "gadre_overtraining.csv"
    one = read_runs([source], ("n_params", "tokens"))
    for name in ("runs.parquet", "runs.pq", "part-0000"):
        parquet.write_table(csv.read_csv(source), tmp_path / name)
        two = read_runs([tmp_path / name], ("n_params", "tokens"))
        for column in one.columns:
            np.testing.assert_array_equal(one[column], two[column])


def test_a_null_of_a_parquet_file_is_named_by_its_row(tmp_path):
    table = pyarrow.table({"n_params": [1e6, 2e6], "tokens": [1e7, 2e7], "loss": [4.0, None]})
    parquet.write_table(table, tmp_path / "runs.parquet")
    assert "row 2: loss is empty" in refusal([tmp_path / "runs.parquet"], NEEDED)


@pytest.mark.parametrize(
    ("cell", "number"), [("308.6M", 308.6e6), ("7B", 7e9), ("1.4T", 1.4e12), ("12k", 12e3), ("2 G", 2e9), ("1e7", 1e7)]
)
def test_numbers_are_read_as_people_write_them(table, cell, number):
    runs = read_runs([table(f"{cell},1e7,4.0,{cell}", header="n_params,tokens,loss,size")], NEEDED)
    assert runs["n_params"][0] == number
    assert runs["size"].dtype == (object if cell != "1e7" else float), "a column of other use keeps its text"


def test_a_source_given_twice_counts_once(table, tmp_path):
    file = table("1e6,1e7,4.0", "2e6,2e7,3.5")
    copy = table("1000000,1e7,4.00,a", "2M,2e7,3.5,b", header="n_params,tokens,loss,note", name="copy.csv")
    for twice in (file, tmp_path / ".." / tmp_path.name / "runs.csv", copy):
        runs = read_runs([file, twice], NEEDED)
        assert list(runs["loss"]) == [4.0, 3.5]
        assert runs.warnings == (
            "repeated: 2 of 4 rows are equal to another in every column and count once (first: line 2, as line 2)",
        )
    assert read_runs([file], NEEDED).warnings == ()


def test_equal_rows_of_one_source_are_runs_of_their_own(table):
    file = table("1e6,1e7,4.0", "2e6,2e7,3.5", "1e6,1e7,4.0")
    for sources in ([file], [file, file]):
        runs = read_runs(sources, NEEDED)
        assert list(runs["loss"]) == [4.0, 3.5, 4.0]
        assert runs.warnings[-1].startswith(f"equal: 1 of {3 * len(sources)} rows are equal to another in every column")
        assert "(first: line 4, as line 2)" in runs.warnings[-1]


def test_rows_that_differ_anywhere_all_count(table):
    file = table("1e6,1e7,4.0,1", "1e6,1e7,4.0,2", header="n_params,tokens,loss,seed")
    assert len(read_runs([file], NEEDED)) == 2


def test_a_filter_may_leave_rows_out(table):
    file = table("1e6,1e7,4.0", "2e6,2e7,nan", "3e6,3e7,3.0")
    assert list(read_runs([file], NEEDED, where=[("loss!", "nan")])["loss"]) == [4.0, 3.0]
    assert list(read_runs([file], NEEDED, where=[("loss!", "nan"), ("n_params!", "1000000")])["loss"]) == [3.0]


# -- what is refused, with the line


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("nan", "loss is nan; expected a finite number above zero"),
        ("-3.1", "loss is -3.1; expected a finite number above zero"),
        ("0", "loss is 0; expected a finite number above zero"),
        ("inf", "loss is inf; expected a finite number above zero"),
        ("", "loss is empty; expected a number"),
        ('"3"1', "',' expected after '\"'; expected comma-separated text"),
        ("3,1", "4 cells; expected 3, as in the header"),
        ("about 3", "loss is 'about 3'; expected a number"),
    ],
)
def test_a_broken_row_is_named_by_its_line(table, cell, said):
    file = table("1e6,1e7,4.0", f"2e6,2e7,{cell}", "3e6,3e7,3.0")
    assert refusal([file], NEEDED) == f"{file}, line 3: {said}"


@pytest.mark.parametrize("cell", ["0", "-5", "nan"])
def test_parameters_and_tokens_are_checked_too(table, cell):
    assert "line 2: tokens is" in refusal([table(f"1e6,{cell},4.0")], NEEDED)
    assert "line 2: n_params is" in refusal([table(f"{cell},1e6,4.0")], NEEDED)


def test_an_optional_column_that_is_there_must_be_whole(table):
    file = table("7Q,1e7,4.0")
    assert "line 2: n_params is '7Q'; expected a number" in refusal([file], ("loss",), ("n_params", "tokens"))
    assert "line 2: n_params is '7Q'; expected a number" in refusal([file], ("loss",), ("M",))
    assert len(read_runs([file], ("loss",), ("tokens",))) == 1


def test_the_error_column_is_a_share(table):
    file = table("62.5,3.0", header="error,loss")
    assert "line 2: error is 62.5; expected a share above 0 and up to 1 (is it in per cent?)" in refusal(
        [file], ("error", "loss")
    )


def test_columns_that_the_law_does_not_use_may_be_broken(table):
    file = table("1e6,1e7,4.0,", "2e6,2e7,3.9,-1", header="n_params,tokens,loss,note")
    assert len(read_runs([file], NEEDED)) == 2


def test_a_missing_column_comes_with_the_nearest_names_and_the_setting():
    said = refusal([DATA / "gadre_overtraining.csv"], NEEDED)
    assert "no column 'loss'" in said
    assert "loss_column" in said
    assert "loss_c4_val" in said


def test_all_missing_columns_are_named_at_once(table):
    said = refusal([table("1e6,3", header="parms,losses")], NEEDED)
    assert "no columns 'n_params' and 'tokens' (nor 'M' and 'n_params') and 'loss' (nor 'ppl')" in said
    assert "choose with n_params_column, tokens_column, loss_column (nearest: parms, losses)" in said


def test_a_chosen_column_that_is_not_there_comes_with_the_nearest_names():
    said = refusal([DATA / "gadre_overtraining.csv"], NEEDED, columns={"loss": "loss_c4_vall"})
    assert "no column 'loss_c4_vall'; nearest: loss_c4_val" in said


def test_two_columns_that_may_both_be_meant_are_not_guessed(table):
    said = refusal([table("1e6,1e7,4.0,4.1", header="n_params,tokens,val_loss,test_loss")], NEEDED)
    assert "val_loss and test_loss may both be loss; choose with loss_column = val_loss" in said


def test_an_empty_filter_names_the_values_that_there_are():
    said = refusal([DATA / "chinchilla_fig4.csv"], NEEDED, where=[("in_fit", "2")])
    assert said == f"filter in_fit=2 leaves no rows of {DATA / 'chinchilla_fig4.csv'}; expected one of 0, 1"


def test_a_filter_on_a_missing_column_comes_with_the_nearest_name():
    said = refusal([DATA / "chinchilla_fig4.csv"], NEEDED, where=[("infit", "1")])
    assert "no column 'infit'; nearest: in_fit" in said


def test_a_group_column_must_be_there():
    said = refusal([DATA / "gemstones.csv"], NEEDED, group="runs")
    assert "no column 'runs'; nearest: run" in said


def test_a_missing_file_comes_with_the_nearest_name():
    assert "(nearest: gemstones.csv)" in refusal([DATA / "gemstone.csv"], NEEDED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: is empty"),
        ("n_params,tokens,loss\n", "no rows"),
        ("loss,loss\n1,2\n", "line 1: column 'loss' twice"),
        ("n_params,,loss\n1,2,3\n", "line 1: a column without a name"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path, text, said):
    file = tmp_path / "runs.csv"
    file.write_text(text)
    assert said in refusal([file], NEEDED)


def test_a_binary_file_is_refused(tmp_path):
    file = tmp_path / "runs.csv"
    file.write_bytes(bytes(range(128, 256)))
    assert "expected comma-separated text in UTF-8" in refusal([file], NEEDED)


def test_a_row_without_its_group_is_refused(table):
    file = table("1e6,1e7,4.0,a", "2e6,2e7,3.5,", header="n_params,tokens,loss,run")
    assert "line 3: run is empty" in refusal([file], NEEDED, group="run")


def test_a_damaged_parquet_file_is_refused(tmp_path):
    (tmp_path / "runs.parquet").write_bytes(b"PAR1 and then nothing")
    assert "not a whole parquet file" in refusal([tmp_path / "runs.parquet"], NEEDED)


# -- filters that compare


@pytest.mark.parametrize(
    ("column", "value", "kept"),
    [
        ("loss<", "3.5", [3.5, 3.0]),
        ("loss>", "3.5", [4.0, 3.5]),
        ("unique>", "tokens", [4.0, 3.0]),
        ("tokens>", "20M", [3.5, 3.0]),
    ],
)
def test_a_filter_may_compare_with_a_number_or_a_column(table, column, value, kept):
    file = table("1e6,1e7,4.0,1e7", "2e6,2e7,3.5,1e7", "3e6,3e7,3.0,30M", header="n_params,D,loss,unique")
    assert list(read_runs([file], NEEDED, where=[(column, value)])["loss"]) == kept


def test_cells_that_are_no_numbers_pass_no_comparison(table):
    file = table("1e6,1e7,4.0", "2e6,2e7,diverged", "3e6,3e7,", "4e6,4e7,nan")
    assert list(read_runs([file], NEEDED, where=[("loss<", "20")])["loss"]) == [4.0]


def test_comparisons_that_mean_nothing_are_refused(table):
    file = table("1e6,1e7,4.0,a", header="n_params,tokens,loss,arch")
    assert "column 'arch' holds no numbers; <= and >= compare numbers" in refusal(
        [file], NEEDED, where=[("arch<", "3")]
    )
    assert "no column 'tokns'; nearest: tokens" in refusal([file], NEEDED, where=[("loss<", "tokns")])
    none_left = refusal([file], NEEDED, where=[("loss<", "1")])
    assert none_left.startswith("filter loss<=1 leaves no rows")
    assert re.search(r"; loss is [\d.]+ to [\d.]+$", none_left)
    assert refusal([file], NEEDED, where=[("tokens<", "n_params")]).endswith("; tokens is above n_params in every row")


def test_filters_compare_columns_that_follow_from_others(table):
    header = "n_params,M,unique_tokens,ppl"
    file = table("1e6,10,1e7,20.0", "1e6,40,1e7,10.0", "1e6,40,4e7,30.0", header=header)
    once = read_runs([file], NEEDED, where=[("unique_tokens>", "tokens")])
    assert list(once["tokens"]) == [1e7, 4e7]
    assert len(read_runs([file], NEEDED, where=[("loss<", "3.1")])) == 2


def test_six_n_d_is_chosen_for_flops_alone(table):
    file = table("1e6,1e7,4.0,1e20", "2e6,2e7,3.0,1e20", header="n_params,tokens,val_loss,flops")
    runs = read_runs([file], (*NEEDED, "flops"), columns={"flops": "6ND"}, where=[("loss<", "3.5")])
    assert list(runs["flops"]) == [6 * 2e6 * 2e7]
    assert "no column '6ND'" in refusal([file], NEEDED, columns={"tokens": "6ND"})
