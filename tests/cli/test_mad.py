import json
import sys
from collections import namedtuple

import numpy as np
import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.mad.scoring.results import RESULTS, read_rows
from tests import warm
from tests.conftest import TINY, environment
from tests.mad.interrupted import VERB

Ended = namedtuple("Ended", "code out err")

RUN = ["mad", "run", "--preset", "smoke", "--steps", "2", "--nproc", "1", "--tasks", "compression", "--out", "out"]


def test_data_writes_the_examples_of_a_setting(in_process, tmp_path):
    assert in_process("mad", "data", "compression", "vocab_size=4", "seq_len=8", "--out", "f.npz").code == 0
    written = np.load(tmp_path / "f.npz", allow_pickle=False)
    assert written["inputs"].shape == written["targets"].shape == (12800, 8)
    assert written["inputs"].max() == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("compression", "--out", "f.npz", "vocab_size=4", "seq_len=8"),
        ("--out", "f.npz", "compression", "vocab_size=4", "--seed", "0", "seq_len=8"),
        ("compression", "vocab_size=4", "--out", "f.npz", "seq_len=8", "--split", "train"),
    ],
)
def test_data_takes_settings_and_options_in_any_order(in_process, tmp_path, arguments):
    assert in_process("mad", "data", *arguments).code == 0
    inputs = np.load(tmp_path / "f.npz", allow_pickle=False)["inputs"]
    assert inputs.shape == (12800, 8)
    assert inputs.max() == 3


def test_run_trains_reports_and_goes_on(hybridtron, in_process, tmp_path):
    layers = ["--layers", "mh-attention", "swiglu"]
    result = hybridtron(*RUN, *layers, "--json")
    assert result.returncode == 0, result.stderr
    (score,) = json.loads(result.stdout)
    assert score["architecture"] == "mh_attention swiglu"
    assert 0 < score["overall"]["micro"]["mean"] < 1
    assert "1/1  compression  baseline" in result.stderr
    with (tmp_path / "out" / RESULTS).open("a") as file:
        file.write("damaged\n")
    again = in_process(*RUN, *layers, "--json")
    assert json.loads(again.out) == [score]
    assert "line 2: damaged (no JSON), left out" in again.err
    assert "1 setting, 1 cell: all there already" in again.err
    assert "1/1" not in again.err
    report = in_process("mad", "report", "out")
    assert report.code == 0
    assert "out/report/report.html" in report.out
    assert (tmp_path / "out" / "report" / "radar.png").exists()


def test_flags_as_mad_lab_users_type_them_work(in_process, tmp_path):
    typed = ["mad", "run", "--task", "compression", "--layers", "mlp", "--dim", "32", "--lr", "1e-2", "1e-3"]
    typed += ["--weight-decay", "0", "0.1", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "--seed", "3"]
    smaller = ["--preset", "madlab", "--set", "seq_len=8", "num_train_examples=16", "--nproc", "1", "--out", "out"]
    result = in_process(*typed, *smaller)
    assert result.code == 0, result.err
    rows, _ = read_rows(tmp_path / "out")
    assert {(row["lr"], row["weight_decay"]) for row in rows} == {(1e-2, 0), (1e-2, 0.1), (1e-3, 0), (1e-3, 0.1)}
    assert {(row["architecture"], row["planned_steps"], row["seed"]) for row in rows} == {("mlp, width 32", 4, 3)}
    assert rows[0]["parameters"] < 20 * 32**2
    assert "cells 4 in place of 6" in result.out


def test_patterns_and_run_configs_are_architectures_too(in_process, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump({**TINY, "data": {"train": "t", "seq_len": 32}}))
    assert in_process(*RUN, "--pattern", "2*mamba", "--iso-state").code == 0
    result = in_process(*RUN, "--config", "run", "--depth", "2", "--set", "seq_len=8", "vocab_size=6")
    assert result.code == 0, result.err
    rows, _ = read_rows(tmp_path / "out")
    assert [row["architecture"] for row in rows] == ["2*mamba, iso-state", "tiny"]
    assert rows[0]["state_size"] == 4096
    assert rows[1]["pattern"] == "mamba mlp"
    assert rows[1]["notes"] == ["width 32 -> 128", "2 of 4 layers"]
    assert rows[1]["setting"]["seq_len"] == 8


def test_a_second_config_of_the_same_proxy_is_called_by_its_own_name(in_process, tmp_path):
    for name in ("small", "large"):
        config = {**TINY, "name": name, "data": {"train": "t", "seq_len": 32}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
        result = in_process(*RUN, "--config", f"{name}.yaml", "--set", "seq_len=8", "--json")
        assert json.loads(result.out)[0]["architecture"] == name
    assert "large is the same model to the tasks as small" in result.err
    assert "1/1" not in result.err


def test_a_changed_setting_alone_is_shown_as_such(in_process):
    layers = ["--layers", "mlp"]
    assert in_process(*RUN, *layers).code == 0
    (score,) = json.loads(in_process(*RUN, *layers, "--set", "seq_len=8", "--json").out)
    assert (score["complete"], score["tasks"]["compression"]["settings"]) == (False, 1)
    assert score["tasks"]["compression"]["of_protocol"] == 0
    text = in_process(*RUN, *layers, "--set", "seq_len=8").out
    assert "1 other" in text
    (score,) = json.loads(in_process(*RUN, *layers, "--json").out)
    assert score["tasks"]["compression"]["of_protocol"] == 1
    assert list(score["other_settings"]["compression"]) == ["seq_len=8"]


def test_run_tells_what_is_left_out(in_process, tmp_path):
    both = [*RUN, "--layers", "mlp", "--tasks", "compression", "memorization"]
    assert in_process(*both).code == 0
    first, second = map(json.loads, (tmp_path / "out" / RESULTS).read_text().splitlines())
    rows = [first, {**second, "num_cells": 2}]
    (tmp_path / "out" / RESULTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = in_process(*both, "--json")
    assert "mlp (smoke): memorization, baseline, seed 0: 1 of 2 cells, left out" in result.err
    assert list(json.loads(result.out)[0]["tasks"]) == ["compression"]


def test_options_that_take_words_may_be_given_twice(in_process, tmp_path):
    given = [*RUN, "--layers", "mlp", "--seeds", "0", "--seeds", "1", "--set", "seq_len=8", "--set", "vocab_size=6"]
    assert in_process(*given, "--layers", "swiglu").code == 0
    rows, _ = read_rows(tmp_path / "out")
    assert [(row["architecture"], row["seed"]) for row in rows] == [("mlp swiglu", 0), ("mlp swiglu", 1)]
    assert {(row["setting"]["seq_len"], row["setting"]["vocab_size"]) for row in rows} == {(8, 6)}


def test_a_dry_run_says_what_there_is_to_train_and_trains_nothing(in_process, tmp_path):
    paper = ["mad", "run", "--layers", "mlp", "--out", "out", "--dry-run"]
    told = json.loads(in_process(*paper, "--json").out)
    assert (told["settings"], told["cells"], told["missing"]) == (66, 396, 396)
    assert "396 cells: 396 to train, at most 5,384,400 steps of 128 in all, 182B tokens" in in_process(*paper).out
    assert not list(tmp_path.iterdir())
    assert in_process(*RUN, "--layers", "mlp").code == 0
    assert "all there already" in in_process(*RUN, "--layers", "mlp", "--dry-run").out
    told = json.loads(in_process(*RUN, "--layers", "mlp", "--seeds", "0", "1", "--dry-run", "--json").out)
    assert (told["cells"], told["missing"], told["steps"], told["tokens"]) == (2, 1, 2, 2 * 8 * 32)


def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(hybridtron, tmp_path):
    given = ["mad", "run", "--layers", "mlp", "--preset", "smoke", "--steps", "2", "--nproc", "1", "--out", "out"]
    done = warm.run(
        [sys.executable, "-c", VERB, *given], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1].startswith("hybridtron: interrupted; the cells that ended are in out")
    assert "Traceback" not in done.stderr
    again = hybridtron(*given)
    assert again.returncode == 0
    assert "there, " in again.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "compresion", "--out", "f.npz"], "task 'compresion': expected one of"),
        (["data", "compression", "vocab=4", "--out", "f.npz"], "(nearest: vocab_size)"),
        (["data", "compression", "vocab_size=x", "--out", "f.npz"], "vocab_size = x: expected a number"),
        (["data", "memorization", "seq_len=7", "--out", "f.npz"], "seq_len = 7: expected an even length"),
        (["data", "compression", "--split", "dev", "--out", "f.npz"], "split 'dev': expected one of"),
        (
            ["data", "compression", "--out", "no/f.npz"],
            "--out = no/f.npz: cannot be written (No such file or directory)",
        ),
        (["data", "compression", "vocab_size=4", "--out", "f.npz", "vocab_size=5"], "vocab_size is given already"),
        (["data", "compression", "--out", "f.npz", "--sed", "1", "seq_len=8"], "unrecognized arguments: --sed"),
        (["data", "compression", "num_train_examples=100000000000", "--out", "f.npz"], "expected at most 4194304"),
        (["data", "compression", f"vocab_size={'9' * 23}", "--out", "f.npz"], "expected at most 65536"),
        (["data", "compression", f"vocab_size={'9' * 5000}", "--out", "f.npz"], "expected a whole number"),
        (["data", "memorization", "vocab_size=100000000000", "--out", "f.npz"], "expected at most 65536"),
        (["data", "in-context-recall", "vocab_size=3000000000", "--out", "f.npz"], "expected at most 65536"),
        (["data", "selective-copying", "seq_len=3000000000", "--out", "f.npz"], "expected at most 65536"),
        (["run", "--layers", "mlp", "--out", "o", "--set", "seq_len=8", "seq_len=10"], "seq_len is given already"),
        (["run", "--layers", "mlp", "--out", "o", "--tasks", "compression", "--sed", "1"], "unrecognized arguments"),
        (["run", "--layers", "mh-atention", "--out", "o"], "(nearest: mh-attention)"),
        (["run", "--pattern", "2*(mamba", "--out", "o"], "pattern"),
        (["run", "--pattern", "", "--out", "o"], "pattern"),
        (["run", "--layers", "mlp", "--match-parameters", "nope"], "--match-parameters = nope: pattern: unknown block"),
        (["run", "--layers", "mlp", "--out", "o" * 300], "cannot be read (File name too long)"),
        (["run", "--config", "none.yaml", "--out", "o"], "none.yaml"),
        (["run", "--layers", "mlp", "--depth", "2", "--out", "o"], "--depth 2: is for --config"),
        (["run", "--layers", "mlp", "--rate", "3"], "unrecognized arguments: --rate 3 (see hybridtron mad run --help)"),
        (["run", "--layers", "mlp", "--lr", "0"], "--lr = 0: expected a positive number"),
        (["run", "--layers", "mlp", "--weight-decay", "nan"], "--weight-decay = nan: expected a number of at least 0"),
        (["run", "--layers", "mlp", "--epochs", "0"], "--epochs = 0: expected at least 1"),
        (["run", "--layers", "mlp", "--dim", "0"], "--dim = 0: expected at least 1"),
        (["run", "--config", "c.yaml", "--dim", "64"], "--dim 64: is for --layers and --pattern"),
        (["run", "--layers", "mlp", "--device", "cuda:x"], "--device 'cuda:x': expected one of cpu, cuda, cuda:0"),
        (["run", "--layers", "mlp", "--vocab-size", "32"], "such as vocab_size=32, in `mad run` after --set"),
        (["run", "--layers", "mlp", "--gpus=2"], "--gpus: is a flag of mad-lab; expected --device cuda:1"),
        (["run", "--layers", "mlp", "--no-early-stop"], "--early-stop: is a flag of mad-lab; expected --preset search"),
        (["run", "--layers", "mlp", "--set", "frac_noise=0.5", "--out", "o"], "choose tasks that have it"),
        ([], "required: data|run|report"),
        (["run", "--layers", "mlp", "--preset", "papr", "--out", "o"], "(nearest: paper)"),
        (["run", "--layers", "mlp", "--tasks", "memory", "--out", "o"], "--tasks = memory: expected one of"),
        (["run", "--layers", "mlp", "--nproc", "0", "--out", "o"], "--nproc = 0: expected at least 1"),
        (["run", "--layers", "mlp", "--seeds", "-1", "--out", "o"], "--seeds = -1: expected whole numbers from 0"),
        (["run", "--layers", "mlp", "--device", "tpu", "--out", "o"], "--device 'tpu': expected one of cpu, cuda"),
        (["report", "nowhere"], "nowhere: has no results.jsonl"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(in_process, tmp_path, arguments, message):
    result = in_process("mad", *arguments)
    assert result.code == 2
    assert result.err.startswith("hybridtron: error: ")
    assert message in result.err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def in_process(tmp_path, monkeypatch, capsys):
    """The command line in this process and the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
        return Ended(code, *capsys.readouterr())

    return run
