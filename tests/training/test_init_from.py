"""A run that begins with the weights of another: strict, in any layout and number format, and resumed like any run."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import yaml

from hybridtron.cli.main import main
from hybridtron.training.single_process import load
from tests.conftest import TINY

STILL = ("train.steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-30")  # a step that changes no weight


@pytest.fixture(scope="module")
def trained(tmp_path_factory, corpus):
    """A finished run of one process, and the config file of the others, which begin with it."""
    folder = tmp_path_factory.mktemp("init_from")
    data = {**TINY["data"], "train": str(corpus / "train")}
    (folder / "first.yaml").write_text(yaml.safe_dump({**TINY, "folder": str(folder / "first"), "data": data}))
    assert main(["train", str(folder / "first.yaml"), "train.steps=3", "schedule.warmup_steps=1"]) == 0
    return folder


def train(trained, name, *more):
    weights = f"train.init_from={trained / 'first'}"
    return main(["train", str(trained / "first.yaml"), weights, f"folder={trained / name}", *STILL, *more])


def weights(run):
    return dict(load(run).named_parameters())


def test_the_weights_are_those_of_the_other_run_and_are_recorded(trained, capfd):
    assert train(trained, "second") == 0
    assert f"begins with the weights of {trained / 'first' / 'step_00000003'}" in capfd.readouterr().err
    expected = weights(trained / "first")
    assert all(torch.equal(value, expected[name]) for name, value in weights(trained / "second").items())
    environment = json.loads((trained / "second" / "environment.json").read_text())
    assert environment["init_from"] == str(trained / "first" / "step_00000003")


def test_two_processes_with_bf16_parameters_keep_the_exact_values(trained, hybridtron):
    """The fp32 copies of their optimizer, which are sharded, and which the checkpoint stores; A_log, D and dt_bias are
    fp32 themselves and have no copy."""
    layout = ("parallel.tensor=2", "precision.format=bf16", "parallel.distributed_optimizer=true", "--nproc", "2")
    done = hybridtron("train", trained / "first.yaml", f"train.init_from={trained / 'first' / 'step_00000003'}",
                      f"folder={trained / 'half'}", *STILL, *layout)  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, after = (whole(trained / name) for name in ("first/step_00000003", "half/step_00000001"))
    parameters = [key for key in before if not key.startswith("optimizer.")]
    assert len(parameters) > 20
    wide = {key for key in parameters if after[key].dtype == torch.float32}
    assert {key.rpartition(".")[2] for key in wide} == {"A_log", "D", "dt_bias"}
    for key in parameters:
        exact = key if key in wide else f"optimizer.param.{key}"
        torch.testing.assert_close(after[exact], before[key], rtol=0, atol=1e-30)
        assert torch.equal(after[key], before[key].to(after[key].dtype))


def whole(checkpoint):
    """All tensors of a checkpoint, as torch converts it."""
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.format_utils import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    found: dict = {}
    _load_state_dict(
        found, storage_reader=FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    return found


def test_a_resumed_run_goes_on_from_its_own_checkpoints(trained, capfd):
    assert train(trained, "third") == 0
    moved = shutil.move(trained / "first", trained / "gone")
    try:
        capfd.readouterr()
        assert train(trained, "third", "train.steps=2", "--resume") == 0
    finally:
        shutil.move(moved, trained / "first")
    assert "resumed from" in capfd.readouterr().err
    environment = json.loads((trained / "third" / "environment.json").read_text())
    assert environment["init_from"] == str(trained / "first" / "step_00000003")
    assert train(trained, "third", "train.steps=3", "train.init_from=elsewhere", "--resume") == 2
    assert "train.init_from = " in capfd.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.pattern=mamba mlp attn", "parameter layers.3.mixer.down.weight is 32 x 64 there; expected absent"),
        ("model.tie_embeddings=true", "parameter head.weight is 320 x 32 there; expected absent"),
        ("model.pattern=mamba mlp attn ffn mlp", "layers.4.mixer.down.weight is absent there; expected 32 x 64"),
        ("model.blocks.mlp.ffn_hidden_size=96", "layers.1.mixer.down.weight is 32 x 64 there; expected 32 x 96"),
        ("train.init_from=nowhere", "nowhere: no such run folder or checkpoint"),
    ],
)  # fmt: skip
def test_other_parameters_are_named_and_nothing_is_written(trained, capfd, change, words):
    assert train(trained, "refused", change) == 2
    error = capfd.readouterr().err
    assert "error: train.init_from: " in error
    assert words in error
    assert not (trained / "refused").exists()


def test_without_training_tokens_a_model_is_not_trained(trained, capfd):
    assert train(trained, "refused", "data.train=null") == 2
    assert "data.train is missing: expected training tokens" in capfd.readouterr().err
