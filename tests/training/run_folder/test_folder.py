"""What a run leaves behind, and what can be done with it."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import yaml

from hybridtron.cli.main import main
from hybridtron.data.datasets.indexed_dataset import read_index
from hybridtron.data.tokenizers.byte import ByteTokenizer
from hybridtron.training.run_folder.folder import read_run
from tests import warm
from tests.conftest import TINY, command, environment


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A finished run of ten steps, evaluated twice, saved at five and ten, that printed a sample."""
    folder = tmp_path_factory.mktemp("run")
    config = {
        **TINY,
        "folder": str(folder / "run"),
        "data": {**TINY["data"], **{name: os.path.relpath(corpus / name, folder) for name in ("train", "valid")}},
        "train": {**TINY["train"], "steps": 10, "log_every": 4, "eval_every": 5, "sample_tokens": 5},
        "checkpoint": {"save_every": 5, "keep_last": 0},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    done = warm.run(
        command("train", folder / "tiny.yaml"), env=environment(), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stderr)
    return folder / "run"


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_metrics_have_a_row_per_logged_step(run):
    assert [row["step"] for row in rows(run)] == [1, 4, 5, 8, 10]
    wanted = {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "flops_per_s", "mfu", "time"}
    assert all(row.keys() >= wanted for row in rows(run))
    assert [row["tokens"] for row in rows(run)] == [row["step"] * 4 * 32 for row in rows(run)]


def test_evaluations_are_in_the_rows_of_their_steps(run):
    evaluated = {row["step"]: row for row in rows(run) if "valid_loss" in row}
    assert list(evaluated) == [5, 10]
    last = evaluated[10]
    assert last["valid_bits_per_byte"] == pytest.approx(last["valid_loss"] / math.log(2), rel=0.02)  # a token is a byte


def test_the_resolved_config_reads_back(run):
    config, checkpoint = read_run(run)
    assert config.model.vocab_size == 320
    assert os.path.isabs(config.data.train)  # it was given relative to the folder of the run's start
    assert checkpoint.name == "step_00000010"


def test_the_environment_tells_versions_code_and_layout(run):
    environment = json.loads((run / "environment.json").read_text())
    assert {"torch", "megatron-core"} <= environment["packages"].keys()
    assert environment["git_hash"]
    assert environment["layout"].items() >= {"world_size": 1, "data": 1, "tensor": 1, "sequence": False}.items()
    assert environment["tokens"].keys() == {"data.train", "data.valid", "data.tokenizer"}


def test_plot_tensorboard_summary_and_checkpoints_are_there(run):
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "tensorboard").glob("events.*"))
    summary = json.loads((run / "summary.json").read_text())
    assert summary["step"] == 10
    assert summary["bigram_bits_per_byte"] > 0
    first_document = read_index(Path(read_run(run)[0].data.valid)).tokens()[:32]
    assert summary["sample_prompt"] == ByteTokenizer().decode(first_document)
    assert len(summary["sample"].encode()) <= 5 * len("\ufffd".encode())
    assert (run / "latest").read_text() == "step_00000010\n"
    assert sorted(path.name for path in run.glob("step_*")) == ["step_00000005", "step_00000010"]


def test_what_is_printed(run):
    printed = (run.parent / "printed").read_text()
    assert "tokens/s" in printed
    assert "left" in printed
    assert "bigram" in printed
    assert f"sample after {json.loads((run / 'summary.json').read_text())['sample_prompt']!r}" in printed
    assert "loss.png" in printed


def test_eval_repeats_the_run_s_own_evaluation(run, capsys):
    assert main(["eval", str(run), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["loss"] == pytest.approx(rows(run)[-1]["valid_loss"], abs=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(rows(run)[-1]["valid_bits_per_byte"], abs=1e-6)


def test_eval_of_as_many_sequences_as_asked(run, capsys):
    losses = []
    for sequences in (1, 3):  # micro-batches are of two
        assert main(["eval", str(run), "--sequences", str(sequences), "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["sequences"], result["tokens"]) == (sequences, sequences * 32)
        losses.append(result["loss"])
    assert losses[0] != losses[1]


def test_eval_of_one_checkpoint(run, capsys):
    assert main(["eval", str(run / "step_00000005"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["loss"] == pytest.approx(rows(run)[2]["valid_loss"], abs=1e-6)


def test_generate(run, capsys):
    arguments = ["generate", str(run), "--prompt", "the ", "--tokens", "8", "--json"]
    texts = []
    for _ in range(2):
        assert main(arguments) == 0
        texts.append(json.loads(capsys.readouterr().out)["text"])
    assert texts[0] == texts[1]
    assert main(arguments[:-1]) == 0
    assert capsys.readouterr().out == f"the {texts[0]}\n"


def test_a_run_without_held_out_data_is_told_how_to_give_them(run, tmp_path, capsys):
    copied = tmp_path / "imported"
    shutil.copytree(run, copied)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    del config["data"]["valid"]
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["eval", str(copied)]) == 2
    assert (
        f"--data is missing: the config of {copied} has no data.valid; expected the prefix" in capsys.readouterr().err
    )


def test_several_prompts_are_continued_one_after_the_other(run, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a model\nthe scan\n\n  \n")
    (tmp_path / "prompts.jsonl").write_text('"a model"\n\n{"prompt": "the scan", "note": "\u2028"}\n')
    printed = []
    for given in (
        ["--prompt", "a model", "--prompt", "the scan"],
        *(["--prompts", str(tmp_path / f"prompts.{end}")] for end in ("txt", "jsonl")),
    ):
        assert main(["generate", str(run), *given, "--tokens", "4", "--json", "--log-probs"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2]
    first, second = map(json.loads, printed[0].splitlines())
    assert (first["prompt"], second["prompt"]) == ("a model", "the scan")
    assert len(first["tokens"]) == len(first["log_probs"]) == 4
    assert main(["generate", str(run), "--prompt", "a model", "--prompt", "the scan", "--tokens", "4"]) == 0
    assert capsys.readouterr().out == f"--- 1 of 2\na model{first['text']}\n\n--- 2 of 2\nthe scan{second['text']}\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "prompt is missing: expected --prompt TEXT or --prompts FILE"),
        (["--prompt", "a", "--log-probs"], "--log-probs: expected --json beside it"),
        (["--prompt", "a", "--top-p", "2"], "--top-p = 2.0: expected a number above 0, up to 1"),
        (["--prompts", "none.txt"], "--prompts = none.txt: No such file or directory"),
        (["--prompts", "empty.txt"], "--prompts = empty.txt: is empty; expected a prompt on each line"),
        (["--prompts", "gap.txt"], "--prompts = gap.txt: line 2 is empty; expected a prompt on each line"),
        (["--prompts", "bad.jsonl"], "bad.jsonl, line 2: expected a JSON text, or an object with a text as prompt"),
    ],
)
def test_prompts_that_are_none(run, tmp_path, monkeypatch, capsys, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('"a"\n[1]\n')
    (tmp_path / "empty.txt").touch()
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    assert main(["generate", str(run), *given]) == 2
    assert message in capsys.readouterr().err


def test_doctor(capsys):
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["required"]["megatron-core"] == "0.16.1"
    assert {"attention", "mamba2 scan"} <= report["operations"].keys()
    assert main(["doctor"]) == 0
    assert "megatron-core" in capsys.readouterr().out
