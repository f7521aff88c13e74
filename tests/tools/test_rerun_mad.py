"""tools/rerun_mad.py on checkpoints that a real run wrote."""

import importlib.util
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from hybridtron.cli.exit_code import exit_code
from hybridtron.mad import from_trained
from hybridtron.mad.scoring.results import read_rows
from hybridtron.mad.tasks.protocol import task
from hybridtron.training.single_process import load
from tests import warm
from tests.conftest import TINY, command, environment
from tests.mad.interrupted import FILE

TOOL = Path(__file__).parents[2] / "tools" / "rerun_mad.py"
QUICK = ["--preset", "smoke", "--steps", "2", "--nproc", "1", "--tasks", "compression", "--set", "seq_len=8"]
OUT = ["--out", "out"]


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("rerun_mad", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def run(tmp_path_factory, corpus):
    """A run folder with the checkpoints of steps 2 and 4; a mixture of experts is among its layers."""
    folder = tmp_path_factory.mktemp("run")
    moe = {"type": "moe", "num_experts": 4, "top_k": 2, "ffn_hidden_size": 16, "balance": "bias"}
    config = {
        **TINY,
        "model": {**TINY["model"], "blocks": {**TINY["model"]["blocks"], "ffn": moe}},
        "folder": str(folder / "tiny"),
        "data": {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")},
        "train": {**TINY["train"], "steps": 4},
        "schedule": {"warmup_steps": 1},
        "checkpoint": {"save_every": 2},
    }
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(config))
    done = warm.run(command("train", file), env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "tiny"


def test_each_mode_scores_checkpoints_and_too_few_are_no_evidence(tool, run, tmp_path, capsys):
    out = tmp_path / "out"
    checkpoints = [str(run / "step_00000002"), str(run)]
    assert tool.main([*checkpoints, "--mode", "probe", "--out", str(out), *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [one["path"] for one in told["checkpoints"]] == checkpoints
    first, second = (one["loss"] for one in told["checkpoints"])
    assert 4 < second < first < 6
    verdict = " ".join(told["correlation"]["verdict"])
    assert "Not evidence: 2 points are too few" in verdict or verdict.startswith("No correlation")
    assert json.loads((out / "correlation.json").read_text())["verdict"] == told["correlation"]["verdict"]
    assert (out / "report" / "report.html").exists()
    assert tool.main([str(run), "--mode", "finetune", "--out", str(out), *QUICK]) == 0
    assert tool.main([str(run), "--mode", "proxy", "--depth", "2", "--out", str(out), *QUICK]) == 0
    rows, _ = read_rows(out)
    assert [row["notes"][0].split(":")[0] for row in rows] == ["probe", "probe", "finetune", "width 32 -> 128"]
    assert len({row["fingerprint"] for row in rows}) == 4
    assert [row["architecture"] for row in rows[1:]] == [
        "tiny/step_00000004, probe", "tiny/step_00000004, finetune", "tiny",
    ]  # fmt: skip


def test_a_checkpoint_given_twice_and_its_run_count_once(tool, run, tmp_path, capsys):
    same = [str(run), str(run / "step_00000004"), f"{run}/../{run.name}", str(run / "step_00000002")]
    assert tool.main([*same, "--depth", "2", "--out", str(tmp_path / "out"), *QUICK, "--json"]) == 0
    text = capsys.readouterr()
    told = json.loads(text.out)
    assert text.err.count("the same checkpoint as") == 2
    assert len(told["checkpoints"]) == 2
    (point,) = told["correlation"]["points"]
    assert point["checkpoints"] == ["tiny/step_00000004", "tiny/step_00000002"]
    assert point["loss"] == told["checkpoints"][0]["loss"]
    verdict = told["correlation"]["verdict"]
    assert verdict[0] == "No correlation: only one model is left; a correlation needs at least two"
    assert verdict[1].startswith("2 checkpoints are one model to the tasks")


def test_one_checkpoint_given_twice_has_no_correlation_and_the_verdict_says_so(tool, run, tmp_path, capsys):
    assert tool.main([str(run), str(run), "--depth", "2", "--out", str(tmp_path / "out"), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "No correlation: only one model is left; a correlation needs at least two" in lines
    assert f"{run} was given twice: the same checkpoint, counted once." in lines


def test_options_given_twice_add_up(tool, run):
    often = (
        "run --out x --tasks compression --tasks memorization --seeds 3 --seeds 4 3 --set seq_len=8 --set vocab_size=8"
    )
    options = tool.parsed(often.split())
    assert options.tasks == ["compression", "memorization"]
    assert options.setting == {"seq_len": 8, "vocab_size": 8}
    assert options.seeds == [3, 4]
    assert tool.parsed(["run", "--out", "x"]).seeds == [0]


def test_ctrl_c_ends_with_one_line_and_what_is_done(run, tmp_path):
    """Sent when the first task is done."""
    out = tmp_path / "out"
    done = warm.run(
        [sys.executable, "-c", FILE, TOOL, run, "--out", out, "--preset", "smoke", "--steps", "2", "--nproc", "1"],
        env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 130
    first, last = done.stderr.splitlines()[-2:]
    assert "  1/6  " in first
    assert last == f"hybridtron: interrupted; what is done is in {out}, the same command goes on"
    rows, _ = read_rows(out)
    assert len(rows) == 1


def test_a_grown_model_is_scored_as_its_small_pattern(tool, run, tmp_path, capsys):
    grown = tmp_path / "grown"
    shutil.copytree(run, grown)
    config = yaml.safe_load((grown / "config.yaml").read_text())
    config["grown_from"] = {"pattern": "mamba mlp", "method": "stack"}
    (grown / "config.yaml").write_text(yaml.safe_dump(config))
    assert tool.main([str(grown), "--out", str(tmp_path / "out"), *QUICK, "--json"]) == 0
    printed = capsys.readouterr()
    assert f"{grown}: scored as mamba mlp, which its model was grown from" in printed.err
    (row,), _ = read_rows(tmp_path / "out")
    assert row["pattern"] == "mamba mlp"
    assert row["notes"][0] == "grown from mamba mlp (stack)"
    assert json.loads(printed.out)["checkpoints"][0]["pattern"] == "mamba mlp"


def test_only_this_calls_settings_and_seeds_are_scored(tool, run, tmp_path, capsys):
    arguments = [str(run), "--depth", "2", "--out", str(tmp_path / "out"), *QUICK]
    assert tool.main([*arguments, "vocab_size=8"]) == 0
    assert tool.main([*arguments, "--seeds", "1"]) == 0
    capsys.readouterr()
    assert tool.main([*arguments, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["checkpoints"]
    assert (told["seeds"], told["tasks"]["compression"]["settings"]) == ([0], 1)
    rows, _ = read_rows(tmp_path / "out")
    assert len(rows) == 3
    assert told["overall"]["micro"]["mean"] == next(
        row["test_micro"] for row in rows if row["setting"]["vocab_size"] == 16 and row["seed"] == 0
    )


def test_losses_on_different_texts_are_not_correlated(tool, run, corpus, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = yaml.safe_load((copy / "config.yaml").read_text())
    config["data"]["valid"] = str(corpus / "train")
    (copy / "config.yaml").write_text(yaml.safe_dump(config))
    both = [str(run), str(copy), "--depth", "2", "--out", str(tmp_path / "out")]
    assert tool.main([*both, *QUICK, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["correlation"]
    assert told["parameters"] is None
    assert (
        "No correlation: copy/step_00000004 and tiny/step_00000004 have different held-out data" in told["verdict"][0]
    )
    assert not (tmp_path / "out" / "correlation.png").exists()


def test_a_report_folder_that_cannot_be_used_is_refused_before_training(tool, run, tmp_path, capsys):
    (tmp_path / "out" / "report").mkdir(parents=True)
    (tmp_path / "out" / "report" / "notes.txt").touch()
    assert exit_code(partial(tool.main, [str(run), "--out", str(tmp_path / "out"), *QUICK])) == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_trained_layers_compute_what_they_did_and_a_probe_leaves_them(run):
    """With the run's own embedding and head in place, the transplanted model gives the checkpoint's logits."""
    from hybridtron.mad.models.proxy_model import ProxyModel

    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(0))
    model = load(run)
    config = model.config
    with torch.no_grad():
        expected = model.logits(tokens)
        parameters = {name: value.detach().clone() for name, value in model.named_parameters()}
    for mode, trained_layers in (("finetune", True), ("probe", False)):
        candidate = from_trained("x", config.model, parameters, mode)
        built, values, frozen = candidate.start(task("memorization"), config.model.vocab_size, 16, seed=0)
        assert any(name.startswith("layers.") for name in values) == trained_layers
        assert values.keys() | frozen.keys() == values.keys() | {n for n in parameters if n.startswith("layers.")}
        proxy = ProxyModel(built, autoencoder=False).eval()
        own = {name: parameters[name] for name in ("embedding.weight", "final_norm.weight", "head.weight")}
        zero = {"head.bias": torch.zeros(config.model.vocab_size)}
        proxy.load_state_dict({**values, **frozen, **own, **zero})
        with torch.no_grad():
            torch.testing.assert_close(proxy(tokens), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such folder; expected a run folder or checkpoint"),
        (["RUN", "--tasks", "compresion"], "tasks = compresion"),
        (["RUN", "--preset", "papper"], "(nearest: paper)"),
        (["RUN", "--steps", "0"], "--steps = 0"),
        (["RUN", "--mode", "probing"], "invalid choice: 'probing'"),
        (["RUN", "--mode", "probe", "--depth", "4"], "--depth: is for mode proxy; expected none with mode probe"),
        (["RUN", "--mode", "finetune", "--iso-state"], "--iso-state: is for mode proxy"),
        (["RUN", "--out", "o" * 300], "ooo/report: File name too long"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(tool, run, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    try:
        code = exit_code(partial(tool.main, [str(run) if word == "RUN" else word for word in (*OUT, *arguments)]))
    except SystemExit as end:
        code = end.code
    text = capsys.readouterr().err
    assert code == 2
    assert message in text
    assert not list(tmp_path.iterdir())
