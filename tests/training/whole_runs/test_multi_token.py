"""Runs with multi-token prediction: metrics, resumed runs, weights from and for models without it, exports."""

import json

import pytest
import torch
import yaml

from hybridtron.accounting.describe import describe
from hybridtron.cli.main import main
from hybridtron.convert import to_hf
from hybridtron.convert.checkpoints.upcycle import upcycle
from hybridtron.convert.formats.safetensors import SafetensorsSource
from hybridtron.training.run_folder.folder import read_config
from hybridtron.training.single_process import load
from tests.conftest import TINY

BLOCKS = {
    "mamba": TINY["model"]["blocks"]["mamba"],
    "attn": {**TINY["model"]["blocks"]["attn"], "rotary_fraction": 0.0},
    "moe": {
        "type": "moe", "num_experts": 4, "ffn_hidden_size": 16, "latent_size": 16, "shared_ffn_hidden_size": 16,
        "activation": "relu2", "score": "sigmoid", "balance": "bias",
    },
}  # fmt: skip
MODEL = {"hidden_size": 32, "blocks": BLOCKS, "pattern": "mamba attn moe"}
MTP = {"depth": 2, "pattern": "attn moe", "shared": True}
STILL = ("train.steps=1", "schedule.warmup_steps=0", "optimizer.lr=1e-30")  # a step that changes no weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory, corpus):
    """Runs of four steps: whole, resumed after the second, and one without multi-token prediction."""
    folder = tmp_path_factory.mktemp("further")
    data = {**TINY["data"], "train": str(corpus / "train"), "valid": str(corpus / "valid")}
    base = {**TINY, "data": data, "schedule": {"type": "constant"}}
    for name, mtp in {"whole": MTP, "resumed": MTP, "plain": None}.items():
        config = {**base, "model": {**MODEL, "mtp": mtp}, "folder": str(folder / name)}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    assert train(folder, "whole", "train.steps=4") == 0
    assert train(folder, "resumed", "train.steps=2") == 0
    assert train(folder, "resumed", "train.steps=4", "--resume") == 0
    assert train(folder, "plain", "train.steps=2") == 0
    return folder


def train(folder, name, *more):
    return main(["train", str(folder / f"{name}.yaml"), *more])


def rows(run):
    return list(map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))


def test_the_loss_of_further_tokens_is_a_metric_beside_the_others(folder):
    whole, plain = rows(folder / "whole"), rows(folder / "plain")
    assert all(row["mtp_loss"] > 1 for row in whole)
    assert set(whole[0]["expert_load"]) == {"2", "mtp.0.layers.1"}
    assert not any("mtp_loss" in row for row in plain)
    assert whole[0]["step_loss"] == plain[0]["step_loss"]  # before any update the modules change nothing else
    model = read_config(folder / "whole").model
    flops = describe(model, TINY["data"]["seq_len"]).flops_training / TINY["data"]["seq_len"]
    assert whole[-1]["flops_per_s"] / whole[-1]["tokens_per_s"] == pytest.approx(flops)


def test_a_resumed_run_is_the_uninterrupted_one(folder):
    kept = ("step", "step_loss", "mtp_loss", "grad_norm", "valid_loss", "expert_load")
    one, other = ([{key: row.get(key) for key in kept} for row in rows(folder / run)] for run in ("whole", "resumed"))
    assert [row["step"] for row in one] == [1, 2, 3, 4]
    assert one[2:] == other[2:]
    parameters = dict(load(folder / "whole").named_parameters())
    assert any(name.startswith("mtp.0.") for name in parameters)
    assert all(torch.equal(value, parameters[name]) for name, value in load(folder / "resumed").named_parameters())


def test_weights_travel_between_models_with_and_without_it(folder, capfd):
    """Where the config names the difference; otherwise the tensors that differ are named."""
    weights = "train.init_from={}".format
    assert train(folder, "plain", weights(folder / "whole"), f"folder={folder / 'a'}", *STILL) == 2
    assert "train.init_left_over can name it" in capfd.readouterr().err
    assert train(folder, "whole", weights(folder / "plain"), f"folder={folder / 'a'}", *STILL) == 2
    assert "mtp.0.final_norm.weight is absent there" in capfd.readouterr().err
    left = (weights(folder / "whole"), f"folder={folder / 'less'}", "train.init_left_over=[mtp]")
    assert train(folder, "plain", *left, *STILL) == 0
    missing = (weights(folder / "plain"), f"folder={folder / 'more'}", "train.init_missing=[mtp]")
    assert train(folder, "whole", *missing, *STILL) == 0
    for made, source in (("less", "whole"), ("more", "plain")):
        expected = dict(load(folder / source).named_parameters())
        taken = {n: p for n, p in load(folder / made).named_parameters() if not n.startswith("mtp.")}
        assert len(taken) > 20
        assert all(torch.equal(value, expected[name]) for name, value in taken.items() if "router_bias" not in name)


def test_an_export_keeps_it_or_says_that_it_is_left_out(folder):
    kept = to_hf(folder / "whole", folder / "hybridtron", logits="never")
    assert kept.architecture == "hybridtron"
    assert not kept.notes
    assert any("mtp.0." in name for name in SafetensorsSource(folder / "hybridtron").tensors)
    without = to_hf(folder / "whole", folder / "nemotron", architecture="nemotron_h", logits="never")
    assert "model.mtp is left out" in without.notes[0]
    names = SafetensorsSource(folder / "nemotron").tensors
    assert not any("mtp" in name for name in names)
    assert any(name.endswith("fc1_latent_proj.weight") for name in names)


def test_experts_are_made_of_its_dense_layers_too(folder):
    section = {"hidden_size": 32, "blocks": TINY["model"]["blocks"], "pattern": "attn mlp", "mtp": {"pattern": "mlp"}}
    config = yaml.safe_load((folder / "plain.yaml").read_text()) | {"model": section, "folder": str(folder / "dense")}
    (folder / "dense.yaml").write_text(yaml.safe_dump(config))
    assert train(folder, "dense", "train.steps=1") == 0
    upcycle(folder / "dense", folder / "sparse", 3)
    dense, sparse = (dict(load(folder / run).named_parameters()) for run in ("dense", "sparse"))
    for layer in ("layers.1", "mtp.0.layers.0"):
        for name, there in (("gate_up", "gate_up.weight"), ("down", "down.weight")):
            experts = sparse[f"{layer}.mixer.{name}"]
            assert torch.equal(experts, dense[f"{layer}.mixer.{there}"].expand(3, -1, -1))
