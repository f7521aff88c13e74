"""tools/prepare_data.py as its users run it."""

import gzip
import importlib.util
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hybridtron.data.datasets.token_dataset import TokenDataset

ROOT = Path(__file__).parents[2]


def prepare_data(*arguments, cwd, largest_file=resource.RLIM_INFINITY):
    """The finished process, run in `cwd`, which cannot write more than `largest_file` bytes to a file."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "prepare_data.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        timeout=120,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY)),
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "texts").mkdir()
    for i in range(60):
        (tmp_path / "texts" / f"{i}.txt").write_text(f"text number {i}\n" * 20)
    lines = [json.dumps({"text": f"line {i} " * 30}) for i in range(200)]
    lines[7] = "{broken"
    (tmp_path / "lines.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return tmp_path


def test_what_it_prints_goes_into_a_config_and_what_it_writes_is_read(folder):
    done = prepare_data("texts", "lines.jsonl.gz", "--out", "out", "--workers", 2, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "damaged lines (kept in out/damaged.jsonl): 1\n  lines.jsonl.gz line 8: not JSON" in done.stdout
    config = yaml.safe_load(done.stdout[done.stdout.index("data: ") :])
    assert config == {"data": {"train": "out/train", "valid": "out/valid", "tokenizer": "byte", "seq_len": 256}}
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["encode", "merge"]  # no terminal, no bar
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    report = json.loads((folder / "out" / "report.json").read_text())
    assert sum(split["documents"] for split in report["splits"].values()) == 259
    dataset = TokenDataset(folder / config["data"]["train"], seq_len=64)
    assert dataset.num_tokens == report["splits"]["train"]["tokens"]
    dataset.check_vocab(257)


def test_json_is_the_report_and_nothing_else(folder):
    done = prepare_data("texts", "--out", "my, out", "--valid", "texts/3.txt", "--json", cwd=folder)
    report = json.loads(done.stdout)
    assert report == json.loads((folder / "my, out" / "report.json").read_text())
    assert report["splits"]["valid"]["documents"] == 1


def test_names_that_yaml_would_misread_are_quoted(folder):
    done = prepare_data("texts", "--out", "my, {out}: #1", cwd=folder)
    config = yaml.safe_load(done.stdout[done.stdout.index("data: ") :])
    assert config["data"]["train"] == "my, {out}: #1/train"


def test_one_document_says_that_there_is_no_validation_split(folder):
    done = prepare_data("texts/1.txt", "--out", "out", cwd=folder)
    assert done.returncode == 0
    assert "no valid split: give its files with --valid" in done.stdout
    assert yaml.safe_load(done.stdout[done.stdout.index("data: ") :])["data"].keys() == {
        "train",
        "tokenizer",
        "seq_len",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.txt"], "no such file or folder: nope.txt"),
        (["texts", "--tokenizer", "nope.json"], "--tokenizer = nope.json: no such file"),
        (["texts", "--valid-fraction", "2"], "--valid-fraction = 2.0"),
        (["texts", "--workers", "0"], "--workers = 0"),
        (["texts", "--workers", "two"], "argument --workers: invalid int value: 'two' (see prepare_data.py --help)"),
        (["empty.txt"], "no document in 1 file(s): 1 empty, 0 damaged line(s)"),
        (["lines.jsonl.gz", "--json-key", "body"], "no document in 1 file(s): 0 empty, 200 damaged line(s)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_written(folder, arguments, message):
    (folder / "empty.txt").touch()
    before = sorted(folder.rglob("*"))
    done = prepare_data(*arguments, "--out", "out", cwd=folder)
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"hybridtron: error: {message}")
    if "body" not in arguments:  # which takes reading, with its progress
        assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert sorted(folder.rglob("*")) == before


def test_a_prepared_folder_is_not_touched(folder):
    prepare_data("texts", "--out", "out", cwd=folder)
    before = (folder / "out" / "train.bin").stat().st_mtime_ns
    done = prepare_data("texts", "--out", "out", cwd=folder)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--out = out: holds a prepared corpus" in done.stderr
    assert (folder / "out" / "train.bin").stat().st_mtime_ns == before


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder, workers):
    lines = [json.dumps({"text": f"line {i} " * 30}) + "\n" for i in range(100)]
    (folder / "more.jsonl").write_text("".join(lines))
    command = ("texts", "lines.jsonl.gz", "more.jsonl", "--out", "out", "--workers", workers)
    full = prepare_data(*command, cwd=folder, largest_file=3000)
    assert full.returncode == 1
    assert full.stderr.splitlines()[-1] == (
        "hybridtron: error: cannot write to out: File too large; the same command goes on from there"
    )
    assert "Traceback" not in full.stderr
    assert prepare_data(*command, cwd=folder).returncode == 0
    assert prepare_data(*command[:3], "--out", "straight", cwd=folder).returncode == 0
    assert (folder / "out" / "train.bin").read_bytes() == (folder / "straight" / "train.bin").read_bytes()


def test_listing_many_files_is_shown(capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location("prepare_data", ROOT / "tools" / "prepare_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LINE_EVERY", -1)
    module.progress_lines()("list", 12_000, 0)
    assert capsys.readouterr().err == "list: 12,000 files\n"
    with module.progress_bar() as progress:
        progress("list", 12_000, 0)
        progress("encode", 5, 10)
