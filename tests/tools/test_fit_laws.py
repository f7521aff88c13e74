"""tools/fit_laws.py as its users run it: on real data, and on data that it must refuse."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybridtron.cli.main import main as hybridtron
from hybridtron.laws import LAWS

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "fit_laws.py"
DATA = ROOT / "tests" / "laws" / "data"
KEYS = {
    "law", "parameters", "objective", "n_points", "n_groups", "intervals", "settings", "sensitivity", "predictions",
    "warnings", "version", "search", "extrapolation", "cross_checks", "verdict",
}  # fmt: skip
CHINCHILLA = ["parametric", DATA / "chinchilla_fig4.csv", "--where", "in_fit=1", "--holdout", 0, "--bootstrap", 0]


@pytest.fixture(scope="module")
def main():
    """The tool's main function, in this process."""
    spec = importlib.util.spec_from_file_location("fit_laws", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main([str(argument) for argument in arguments])


def fit_laws(*arguments, cwd):
    """The finished process, run in `cwd`."""
    command = [sys.executable, str(TOOL), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=120)


@pytest.fixture
def table(tmp_path):
    """Writes rows of n_params, tokens and loss that follow a law, with one line replaced, and returns the file."""

    def write(line=None, text=None):
        rows = [(n, d, 1.7 + 400 / n**0.34 + 400 / d**0.28) for n in (1e7, 3e7, 1e8, 3e8) for d in (2e9, 5e9, 1e10)]
        lines = ["n_params,tokens,loss", *(f"{n:g},{d:g},{loss:.5f}" for n, d, loss in rows)]
        if line is not None:
            lines[line - 1] = text
        file = tmp_path / "runs.csv"
        file.write_text("\n".join(lines) + "\n")
        return file

    return write


# -- the whole command


@pytest.mark.parametrize(
    "arguments",
    [
        (
            "parametric",
            "chinchilla_fig4.csv",
            "--where",
            "in_fit=1",
            "--predict",
            "N=7e10,D=1.4e12",
            "--predict",
            "C=1e24",
        ),
        ("parametric", "gemstones.csv", "--group", "run"),
        ("isoflop", "chinchilla_isoflop.csv", "--outliers", "openathena_outlier", "--predict", "C=1e22"),
        ("isoflop", "porian_isoflop.csv", "--where", "experiment=4_cosine_decay"),
        ("isoflop", "marin_misfitting_isoflop.csv", "--where", "dataset=comma", "--window", "inf"),
        ("overtraining", "gadre_overtraining.csv", "--loss-column", "loss_c4_val", "--predict", "N=6.9e9,M=20"),
        ("state-optimal", "state_optimal_synthetic.csv", "--context", "2048"),
        ("state-optimal", "gemstones_state_optimal.csv", "--context", "2048"),
        ("downstream", "gadre_overtraining.csv", "--loss-column", "loss_c4_val", "--error-column", "err_avg17"),
        ("downstream", "gemstones_downstream.csv", "--group", "run"),
        ("proxy", "mad_paper_fig1_digitised.csv", "--ppl-column", "ppl_compute_optimal_pile"),
        ("depth-width", "gemstones.csv", "--group", "run", "--holdout", "0"),
        ("learning-rate", "learning_rate_sweep.csv"),
    ],
    ids=lambda arguments: f"{arguments[0]}-{arguments[1].removesuffix('.csv')}",
)
def test_every_law_reports_on_real_data(main, arguments, tmp_path, capsys):
    law, file, *options = arguments
    assert main(law, DATA / file, "--out", tmp_path / "out", "--bootstrap", 0, *options) == 0
    out = tmp_path / "out"
    written = {path.name for path in out.iterdir()}
    assert {"fit.json", "report.html"} < written
    assert any(name.endswith(".png") for name in written)
    content = json.loads((out / "fit.json").read_text())
    assert set(content) == KEYS
    assert content["law"] == law
    assert len(content["predictions"]) == options.count("--predict")
    assert all(isinstance(value, float) for value in content["parameters"].values())
    page = (out / "report.html").read_text()
    assert all(f">{name}</th>" in page for name in content["parameters"])
    assert content["verdict"][0] in capsys.readouterr().out


def test_the_process_says_the_verdict_and_where_the_report_is(tmp_path):
    done = fit_laws(*CHINCHILLA, "--out", "fit", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Loss falls as" in done.stdout
    assert done.stdout.rstrip().endswith("fit/report.html")


def test_json_is_what_fit_json_holds(main, tmp_path, capsys):
    assert main(*CHINCHILLA, "--out", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "fit.json").read_text())


def test_the_same_command_again_replaces_its_report(main, tmp_path):
    for delta in ("1e-3", "inf"):
        assert main(*CHINCHILLA, "--delta", delta, "--out", tmp_path / "out") == 0
    assert json.loads((tmp_path / "out" / "fit.json").read_text())["settings"]["delta"] == "inf"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_intervals_are_the_same_for_the_same_seed(main, tmp_path, capsys):
    found = []
    arguments = ["--loss-column", "loss_c4_val", "--error-column", "err_avg17", "--holdout", 0, "--bootstrap", 100]
    for seed in (1, 1, 2):
        out = ["--seed", seed, "--out", tmp_path / "out", "--json"]
        assert main("downstream", DATA / "gadre_overtraining.csv", *arguments, *out) == 0
        found.append(json.loads(capsys.readouterr().out)["intervals"])
    assert found[0] == found[1] != found[2]


def test_where_the_data_came_from_is_in_the_settings(main, tmp_path, capsys):
    arguments = ["--loss-column", "loss_c4_val", "--error-column", "err_avg17", "--where", "train_set=redpajama"]
    arguments += ["--holdout", 0, "--bootstrap", 0, "--out", tmp_path / "out", "--json"]
    assert main("downstream", DATA / "gadre_overtraining.csv", *arguments) == 0
    data = json.loads(capsys.readouterr().out)["settings"]["data"]
    assert data["columns"] == {"loss": "loss_c4_val", "error": "err_avg17"}
    assert data["where"] == [["train_set", "redpajama"]]
    assert data["sources"] == [str(DATA / "gadre_overtraining.csv")]


# -- what it refuses: one line, code 2, nothing written


def refused(main, capsys, tmp_path, *arguments):
    """The error line."""
    assert main(*arguments, "--out", tmp_path / "out") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("hybridtron: error: ")
    assert not (tmp_path / "out").exists()
    return said.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1e7,2e9,nan", "line 4: loss is nan"),
        ("1e7,-2e9,3.1", "line 4: tokens is -2e+09"),
        ("0,2e9,3.1", "line 4: n_params is 0"),
        ("1e7,2e9,", "line 4: loss is empty"),
        ("1e7,2e9", "line 4: 2 cells; expected 3"),
        ("7Q,2e9,3.1", "line 4: n_params is '7Q'"),
    ],
)
def test_a_broken_row_is_named_by_its_line(main, capsys, tmp_path, table, text, said):
    assert said in refused(main, capsys, tmp_path, "parametric", table(4, text))


def test_a_missing_column_comes_with_the_nearest_names(main, capsys, tmp_path):
    said = refused(main, capsys, tmp_path, "parametric", DATA / "gadre_overtraining.csv")
    assert "no column 'loss'" in said
    assert "loss_c4_val" in said


def test_an_empty_filter_names_the_values(main, capsys, tmp_path):
    file = DATA / "gadre_overtraining.csv"
    said = refused(main, capsys, tmp_path, "overtraining", file, "--where", "train_set=c4")
    assert "filter train_set=c4 leaves no rows" in said
    assert "redpajama" in said


def test_one_budget_only_is_refused(main, capsys, tmp_path):
    file = DATA / "chinchilla_isoflop.csv"
    assert "one budget only" in refused(main, capsys, tmp_path, "isoflop", file, "--where", "flops=3e19")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["parametrik"], "law 'parametrik': expected one of parametric"),
        ([], "arguments are required: LAW"),
        (["parametric", "nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["parametric", DATA / "gemstones.csv", "--predict", "N=many"], "expected NAME=NUMBER"),
        (
            ["parametric", DATA / "gemstones.csv", "--predict", "N=-1,D=1e9"],
            "N is -1; expected a finite number above zero",
        ),
        (["parametric", DATA / "gemstones.csv", "--bootstrap", "-5"], "expected a whole number of at least 0"),
        (["parametric", DATA / "gemstones.csv", "--where", "run"], "expected COL=VALUE"),
        (["parametric", DATA / "gemstones.csv", "--los-column", "loss"], "unrecognized arguments: --los-column"),
        (["parametric", DATA / "gemstones.csv", "--delta", "0"], "--delta = 0: expected"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(main, capsys, tmp_path, arguments, said):
    if not arguments:
        assert main() == 2
        assert said in capsys.readouterr().err
    else:
        assert said in refused(main, capsys, tmp_path, *arguments)


def test_an_option_that_is_needed_and_misspelt_is_named(main, capsys):
    assert main("isoflop", "a.csv", "--uot", "x") == 2
    said = "the following arguments are required: --out; unrecognized: --uot (nearest: --out)"
    assert capsys.readouterr().err == f"hybridtron: error: {said}\n"


def test_a_folder_with_other_files_is_refused_before_anything_is_read(main, capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert main("parametric", "nowhere.csv", "--out", tmp_path) == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_earlier_report_survives_refused_data(main, capsys, tmp_path, table):
    assert main(*CHINCHILLA, "--out", tmp_path / "out") == 0
    before = (tmp_path / "out" / "fit.json").read_text()
    assert main("parametric", table(3, "1e7,2e9,nan"), "--out", tmp_path / "out") == 2
    assert (tmp_path / "out" / "fit.json").read_text() == before


# -- what it asks


def warnings_of(main, capsys, tmp_path, file):
    assert main("parametric", file, "--bootstrap", 0, "--holdout", 0, "--out", tmp_path / "out", "--json") == 0
    return json.loads(capsys.readouterr().out)["warnings"]


@pytest.mark.parametrize("text", ["1e7,2e9,23.5", "1e9,5e8,3.1"], ids=["loss above 20", "tokens below parameters"])
def test_odd_units_are_asked_about(main, capsys, tmp_path, table, text):
    asked = [warning for warning in warnings_of(main, capsys, tmp_path, table(5, text)) if warning.startswith("units:")]
    assert len(asked) == 1
    assert "?" in asked[0]


def test_usual_units_are_not_asked_about(main, capsys, tmp_path, table):
    assert not [w for w in warnings_of(main, capsys, tmp_path, table()) if w.startswith("units:")]


# -- the verb


def test_the_verb_writes_what_the_tool_writes(main, tmp_path, capsys):
    assert main(*CHINCHILLA, "--out", tmp_path / "tool", "--json") == 0
    by_tool = json.loads(capsys.readouterr().out)
    assert hybridtron(["laws", "fit", *map(str, CHINCHILLA), "--out", str(tmp_path / "verb"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == by_tool
    assert json.loads((tmp_path / "verb" / "fit.json").read_text()) == by_tool


def test_laws_are_listed_with_their_columns_one_a_line(capsys):
    assert hybridtron(["laws", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(LAWS)
    for line, law in zip(lines, LAWS.values(), strict=True):
        assert ", ".join(law.columns) in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["gadre_overtraining.csv"], "no column 'loss' (nor 'ppl'); choose with --loss-column"),
        (["gemstones.csv", "--jobs", "0"], "--jobs = 0: expected a whole number of at least 1"),
        (["gemstones.csv", "--predict", "N=1e9"], "--predict = N=1e+09: expected two of N, D, C, M"),
    ],
)
def test_errors_name_flags(main, capsys, tmp_path, arguments, said):
    file, *options = arguments
    assert said in refused(
        main, capsys, tmp_path, "parametric", DATA / file, "--bootstrap", 0, "--holdout", 0, *options
    )
