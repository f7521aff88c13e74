import json
from collections import namedtuple

import numpy as np
import pytest
import yaml

from hybridtron.cli import main
from hybridtron.mad.results import RESULTS, read_rows
from tests.conftest import TINY

Ended = namedtuple("Ended", "code out err")

RUN = ["mad", "run", "--preset", "smoke", "--steps", "2", "--nproc", "1", "--tasks", "compression", "--out", "out"]


def test_data_writes_the_examples_of_a_setting(in_process, tmp_path):
    assert in_process("mad", "data", "compression", "vocab_size=4", "seq_len=8", "--out", "f.npz").code == 0
    written = np.load(tmp_path / "f.npz", allow_pickle=False)
    assert written["inputs"].shape == written["targets"].shape == (12800, 8)
    assert written["inputs"].max() == 3


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
    assert "line 2: damaged, left out" in again.err
    assert "1/1" not in again.err
    report = in_process("mad", "report", "out")
    assert report.code == 0
    assert "out/report/report.html" in report.out
    assert (tmp_path / "out" / "report" / "radar.png").exists()


def test_patterns_and_run_configs_are_architectures_too(in_process, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({**TINY, "data": {"train": "t", "seq_len": 32}}))
    assert in_process(*RUN, "--pattern", "2*mamba", "--iso-state").code == 0
    result = in_process(*RUN, "--config", "run.yaml", "--depth", "2", "--set", "seq_len=8", "vocab_size=6")
    assert result.code == 0, result.err
    rows, _ = read_rows(tmp_path / "out")
    assert [row["architecture"] for row in rows] == ["2*mamba, iso-state", "tiny"]
    assert rows[0]["state_size"] == 4096
    assert rows[1]["pattern"] == "mamba mlp"
    assert rows[1]["notes"] == ["width 32 -> 128", "2 of 4 layers"]
    assert rows[1]["setting"]["seq_len"] == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "compresion", "--out", "f.npz"], "task 'compresion': expected one of"),
        (["data", "compression", "vocab=4", "--out", "f.npz"], "(nearest: vocab_size)"),
        (["data", "compression", "vocab_size=x", "--out", "f.npz"], "vocab_size = x: expected a number"),
        (["data", "memorization", "seq_len=7", "--out", "f.npz"], "seq_len = 7: expected an even length"),
        (["data", "compression", "--split", "dev", "--out", "f.npz"], "split 'dev': expected one of"),
        (["data", "compression", "--out", "no/f.npz"], "--out no/f.npz: cannot be written"),
        (["run", "--layers", "mh-atention", "--out", "o"], "(nearest: mh-attention)"),
        (["run", "--pattern", "2*(mamba", "--out", "o"], "pattern"),
        (["run", "--config", "none.yaml", "--out", "o"], "none.yaml"),
        (["run", "--layers", "mlp", "--preset", "papr", "--out", "o"], "(nearest: paper)"),
        (["run", "--layers", "mlp", "--tasks", "memory", "--out", "o"], "task 'memory'"),
        (["run", "--layers", "mlp", "--nproc", "0", "--out", "o"], "--nproc = 0: expected at least 1"),
        (["run", "--layers", "mlp", "--seeds", "-1", "--out", "o"], "--seeds -1: expected numbers from 0"),
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
