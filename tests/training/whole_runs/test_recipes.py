"""Muon, an average of weights, a power schedule, and growing batches together: resumed, in other layouts, converted."""

import json
import shutil

import pytest
import torch
import yaml

from hybridtron.api.study import plan
from hybridtron.cli.main import main
from hybridtron.convert.checkpoints.reshard import reshard
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.training.evaluate import evaluate_run
from tests.conftest import TINY

RECIPE = {
    "train": {
        "steps": 8,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "log_every": 1,
        "eval_sequences": 8,
        "batch_warmup": [{"steps": 2, "global_batch_size": 4}, {"steps": 3, "global_batch_size": 8}],
    },
    "optimizer": {"lr": 1e-2, "type": "muon", "ema": {"decay": 0.7, "every": 2}},
    "schedule": {"type": "power", "warmup_steps": 2, "decay_steps": 3, "decay_shape": "1-sqrt"},
    "checkpoint": {"save_every": 3, "keep_last": 0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """A folder with a config, its run `whole`, and a run `resumed` after step 3."""
    folder = tmp_path_factory.mktemp("recipes")
    data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    (folder / "run.yaml").write_text(yaml.safe_dump({**TINY, **RECIPE, "data": data}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "run.yaml", "folder=whole"]) == 0
        shutil.copytree(folder / "whole", folder / "resumed")
        for name in ("step_00000006", "step_00000008"):
            shutil.rmtree(folder / "resumed" / name)
        (folder / "resumed" / "latest").write_text("step_00000003\n")
        assert main(["train", "run.yaml", "folder=resumed", "--resume"]) == 0
    return folder


def rows(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def tensors(run):
    source = CheckpointSource(run / "step_00000008", optimizer=True)
    return {name: source.read(name) for name in source.tensors}


def test_a_resumed_run_ends_with_the_same_bits(folder):
    whole, resumed = tensors(folder / "whole"), tensors(folder / "resumed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())
    keys = ("step", "tokens", "loss", "lr", "grad_norm", "valid_loss", "ema_valid_loss")
    assert [[row.get(key) for key in keys] for row in rows(folder / "whole")] == [
        [row.get(key) for key in keys] for row in rows(folder / "resumed")
    ]


def test_steps_of_the_warm_up_are_smaller_and_count_less(folder):
    assert [row["tokens"] // 32 for row in rows(folder / "whole")] == [4, 8, 16, 24, 32, 40, 48, 56]
    assert rows(folder / "whole")[2]["lr"] == pytest.approx(1e-2 * (3 / 2) ** -0.51)


def test_two_processes_train_alike(folder, hybridtron):
    more = ("parallel.distributed_optimizer=true", f"folder={folder / 'two'}", "--nproc", 2)
    hybridtron("train", folder / "run.yaml", *more).check_returncode()
    one, two = rows(folder / "whole"), rows(folder / "two")
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in two] == pytest.approx([row[key] for row in one], rel=1e-4)
    assert two[-1]["ema_valid_loss"] == pytest.approx(one[-1]["ema_valid_loss"], abs=1e-5)
    assert two[-1]["tokens"] == one[-1]["tokens"]


def test_the_average_becomes_a_run_with_its_loss(folder):
    assert main(["convert", "ema", str(folder / "whole"), str(folder / "average")]) == 0
    row = rows(folder / "whole")[-1]
    assert evaluate_run(folder / "average", None, 8)["loss"] == pytest.approx(row["ema_valid_loss"], abs=1e-6)
    assert abs(row["ema_valid_loss"] - row["valid_loss"]) > 1e-3
    assert json.loads((folder / "whole" / "summary.json").read_text())["ema_valid_loss"] == row["ema_valid_loss"]


def test_momentum_and_averages_are_resharded(folder):
    reshard(folder / "whole", folder / "halves", tensor=2)
    moved = tensors(folder / "halves")
    for name, tensor in tensors(folder / "whole").items():
        assert torch.equal(moved[name], tensor), name
    kinds = {name.split(".")[1] for name in moved if name.startswith("optimizer.")}
    assert kinds == {"exp_avg", "exp_avg_sq", "momentum", "ema"}


def test_the_plan_counts_what_the_checkpoint_holds(folder):
    stored = sum(tensor.nbytes for tensor in tensors(folder / "whole").values())
    assert plan(folder / "run.yaml", gpus=1).checkpoint.total_bytes == stored


def test_an_average_may_begin_on_resume_and_growing_batches_may_not_change(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    shutil.copytree(folder / "whole", folder / "later")
    resume = ["train", "run.yaml", "folder=later", "--resume", "train.steps=9"]
    assert main([*resume, "train.batch_warmup=[]"]) == 2
    assert "train.batch_warmup = []: expected [{" in capsys.readouterr().err
    assert (
        main(["train", "run.yaml", "folder=plain", "optimizer.ema=null", "train.steps=3", "schedule.decay_steps=0"])
        == 0
    )
    assert main(["convert", "ema", "plain", "none"]) == 2
    assert "step_00000003: has no average of weights; expected" in capsys.readouterr().err
    assert main(["train", "run.yaml", "folder=plain", "--resume"]) == 0
    assert rows(folder / "plain")[-1]["ema_valid_loss"] != rows(folder / "whole")[-1]["ema_valid_loss"]


def test_a_batch_that_cannot_be_divided_is_refused(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    one = "train.batch_warmup=[{steps: 2, global_batch_size: 3}]"
    assert main(["train", "run.yaml", "folder=x", one]) == 2
    message = capsys.readouterr().err
    assert "train.batch_warmup[0].global_batch_size = 3: expected a multiple of train.micro_batch_size 2" in message
    assert main(["train", "run.yaml", "folder=x", "--nproc", "4"]) == 2
    assert "train.batch_warmup[0].global_batch_size = 4: expected a multiple of" in capsys.readouterr().err
