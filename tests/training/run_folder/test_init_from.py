"""A run that begins with the weights of another: strict, in any layout and number format, and resumed like any run."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
import yaml

from hybridtron.api.model import build_model
from hybridtron.cli.main import main
from hybridtron.training.run_folder.folder import read_run
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
        ("train.init_from=nowhere", "nowhere: no such folder; expected a run folder or checkpoint"),
    ],
)  # fmt: skip
def test_other_parameters_are_named_and_nothing_is_written(trained, capfd, change, words):
    assert train(trained, "refused", change) == 2
    error = capfd.readouterr().err
    assert "error: train.init_from: " in error
    assert words in error
    assert not (trained / "refused").exists()


def test_each_parameter_that_differs_is_named_with_the_nearest(trained, capfd):
    """One that is missing, one of another shape and one that is left over, a line each."""
    change = ("model.blocks.attn.qkv_bias=true", "model.pattern=mamba mlp attn", "model.vocab_size=384")
    assert train(trained, "refused", *change) == 2
    lines = capfd.readouterr().err.splitlines()
    (first,) = [i for i, line in enumerate(lines) if "error: train.init_from: " in line]
    found = "\n".join(lines[first:])
    assert "parameter embedding.weight is 320 x 32 there; expected 384 x 32, as the config says, or train." in found
    assert "parameter layers.2.mixer.qkv.bias.k is absent there; expected 16, as the config says" in found
    assert "train.init_missing can name it" in found
    assert re.search(r"parameter layers.3.mixer.\S+ is \S.* there; expected absent, .*train.init_left_over", found)
    assert "(nearest: layers." in found
    assert not (trained / "refused").exists()


def test_listed_parameters_keep_random_values_and_others_are_dropped(trained, capfd):
    listed = ('train.init_missing=["*.bias"]', "train.init_left_over=[ffn]")
    assert train(trained, "listed", "model.blocks.attn.qkv_bias=true", "model.pattern=mamba mlp attn", *listed) == 0
    assert "random: layers.2; not used: layers.3" in capfd.readouterr().err
    before, after = weights(trained / "first"), weights(trained / "listed")
    assert torch.equal(after["layers.2.mixer.qkv.weight"], before["layers.2.mixer.qkv.weight"])
    environment = json.loads((trained / "listed" / "environment.json").read_text())
    assert (environment["init_random"], environment["init_left_over"]) == (["layers.2"], ["layers.3"])
    summary = json.loads((trained / "listed" / "summary.json").read_text())
    assert summary["init_from"] == environment["init_from"] == str(trained / "first" / "step_00000003")


def test_new_vocabulary_rows_keep_the_values_of_the_seed(trained, capfd):
    assert train(trained, "larger", "model.vocab_size=384", "train.init_vocabulary=extend") == 0
    assert "new vocabulary rows: 64" in capfd.readouterr().err
    before, after = weights(trained / "first"), weights(trained / "larger")
    drawn = initial_parameters(read_run(trained / "larger")[0])
    for name in ("embedding.weight", "head.weight"):
        assert torch.equal(after[name][:320], before[name])
        assert torch.equal(after[name][320:], drawn[name][320:])
    assert train(trained, "smaller", f"train.init_from={trained / 'larger'}", "train.init_vocabulary=cut") == 0
    assert torch.equal(weights(trained / "smaller")["head.weight"], before["head.weight"])


def initial_parameters(config):
    """The random values that a run begins with."""
    return dict(build_model(config).named_parameters())


MAPS = {
    "block": (
        "mamba mlp mamba mlp attn",
        "{mamba: mamba, mlp: mlp, attn: attn}",
        "2 layers of mamba here, 1 of mamba",
    ),
    "range": ("mamba mlp attn ffn", "{layers.4: layers.0}", "layers.4: expected layers.0 to layers.3"),
    "source": ("mamba mlp attn ffn", "{layers.0: layers.9}", "layers.0 = layers.9: expected layers.0 to layers.3"),
    "type": ("mamba mlp attn ffn", "{layers.1: layers.2}", "is of type attention there; expected swiglu"),
    "name": ("mamba mlp attn ffn", "{attm: attn}", "attm: expected a layer, such as layers.0, or one of"),
    "unused": (
        "mamba mlp attn ffn",
        "{layers.0.mixer.Alog: null}",
        "layers.0.mixer.Alog: stands for no parameter of the model; expected a name, or its beginning "
        "(nearest: layers.0.mixer.A_log)",
    ),
    "unmapped": ("mamba mlp attn ffn", "{attn: attn}", "layers.0 has no source in train.init_map"),
}


@pytest.mark.parametrize("case", MAPS)
def test_a_map_that_does_not_fit_is_refused(trained, capfd, case):
    pattern, init_map, words = MAPS[case]
    assert train(trained, "refused", f"model.pattern={pattern}", f"train.init_map={init_map}") == 2
    error = capfd.readouterr().err
    assert words in error
    assert "train.init_" in error
    assert not (trained / "refused").exists()


def test_layers_are_taken_by_name_into_another_pattern_and_the_run_resumes(trained, capfd):
    """Its first loss is that of the mapped layers, not of random ones."""
    init_map = "{attn: attn, mlp: mlp, layers.2: layers.0, layers.3: layers.0, head: embedding, layers.4: null}"
    change = ("model.pattern=attn mlp mamba mamba ffn", f"train.init_map={init_map}")
    change += ("train.init_left_over=[ffn, head]",)
    assert train(trained, "mapped", *change) == 0
    assert "random: layers.4; not used: " in capfd.readouterr().err
    before, after = weights(trained / "first"), weights(trained / "mapped")
    for layer, source in {"0": "2", "1": "1", "2": "0", "3": "0"}.items():
        mine = {name.removeprefix(f"layers.{layer}."): v for name, v in after.items() if f"layers.{layer}." in name}
        assert mine
        assert all(torch.equal(value, before[f"layers.{source}.{name}"]) for name, value in mine.items())
    assert torch.equal(after["head.weight"], before["embedding.weight"])
    assert not torch.equal(after["layers.4.mixer.up.weight"], before["layers.3.mixer.up.weight"])
    assert train(trained, "mapped", *change, "train.steps=2", "--resume") == 0
    assert json.loads((trained / "mapped" / "environment.json").read_text())["init_random"] == ["layers.4"]
    other = [change[0], change[2], "train.init_map={layers.0: null}", "train.steps=3", "--resume"]
    assert train(trained, "mapped", *other) == 2
    assert "train.init_map" in capfd.readouterr().err


def test_training_goes_on_from_the_trained_loss_on_other_data(trained, corpus, tmp_path):
    """The first step's loss is that of the trained model on the new tokens, well below a random model's."""
    data = (f"data.train={corpus / 'valid'}", "train.init_from=null")
    assert main(["train", str(trained / "first.yaml"), *data[:1], f"train.init_from={trained / 'first'}",
                 f"folder={tmp_path / 'on'}", "seed=8", *STILL]) == 0  # fmt: skip
    assert main(["train", str(trained / "first.yaml"), *data, f"folder={tmp_path / 'random'}", "seed=8", *STILL]) == 0
    trained_loss, random_loss = (
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])["loss"] for name in ("on", "random")
    )
    assert trained_loss < random_loss - 0.1


def test_keys_beside_no_source_are_refused(trained, capfd):
    assert main(["train", str(trained / "first.yaml"), "train.init_vocabulary=extend"]) == 2
    assert "train.init_vocabulary = 'extend': expected train.init_from beside it" in capfd.readouterr().err


def test_without_training_tokens_a_model_is_not_trained(trained, capfd):
    assert train(trained, "refused", "data.train=null") == 2
    assert "data.train is missing: expected training tokens" in capfd.readouterr().err
