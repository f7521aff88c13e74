"""Training in emulated FP8: close to bf16, exact on resume, and only where it is asked for."""

import functools
import json
from statistics import fmean

import pytest
import torch

from hybridtron.config.load import build, load
from hybridtron.errors import UserError
from hybridtron.model.quantized import quantized_linears
from hybridtron.training.callbacks import Callback
from hybridtron.training.config import RunConfig
from hybridtron.training.proxy_run import train_proxy
from hybridtron.training.validation.resolve import resolve
from tests.conftest import ROOT, TINY

FP8 = ["precision.format=fp8", "precision.emulate=true", "precision.skip=[mamba.in_proj]"]


def tiny_config(backend: str = "auto", **precision) -> RunConfig:
    config = {
        **TINY,
        "model": {**TINY["model"], "backend": backend},
        "data": {**TINY["data"], "train": "none"},
        "precision": {"format": "fp8", "emulate": True},
    }
    config["precision"] |= precision
    return resolve(build(config, RunConfig))


def losses(run):
    return [json.loads(line)["step_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def refusal(backend: str = "auto", **precision) -> str:
    with pytest.raises(UserError) as error:
        tiny_config(backend, **precision)
    return str(error.value)


def test_linears_of_layers_are_quantized_but_for_those_that_are_left_out():
    config = tiny_config(skip=["mamba.in_proj"])
    names = [linear.name for linear in quantized_linears(config.model, config.precision)]
    assert names == [
        f"layers.{layer}.mixer.{part}"
        for layer, parts in enumerate((["out_proj"], ["gate_up", "down"], ["qkv", "proj"], ["up", "down"]))
        for part in parts
    ]
    assert all(name.startswith("1.") for name in _names(skip=["mamba", "attn", "ffn"]))
    assert _names(skip=["mamba.in*", "*.down", "attn"]) == ["0.mixer.out_proj", "1.mixer.gate_up", "3.mixer.up"]
    assert {name[0] for name in _names(first_last_bf16=1)} == {"1", "2"}
    bf16 = config.precision.model_copy(update={"format": "bf16"})
    assert quantized_linears(config.model, bf16) == []


def _names(**precision) -> list[str]:
    config = tiny_config(**precision)
    linears = quantized_linears(config.model, config.precision)
    return [linear.name.removeprefix("layers.") for linear in linears]


def test_refusals_name_what_to_do():
    assert "precision.skip = 'attn.prj': expected a block (mamba, attn, mlp, ffn)" in refusal(skip=["attn.prj"])
    assert "(nearest: attn.proj)" in refusal(skip=["attn.prj"])
    assert "precision.emulate = false: expected true with model.backend megatron" in refusal("megatron", emulate=False)
    assert "precision.first_last_bf16 = 2: expected less than half of the 4 layers" in refusal(first_last_bf16=2)
    assert refusal() == (
        "precision.recipe = tensorwise: mamba.in_proj has 164 outputs on each process (head_dim or num_groups sets "
        "it); expected a multiple of 16 (nearest: 160 or 176), or precision.skip with mamba.in_proj"
    )
    assert "skip with mamba.in_proj, mamba.out_proj, mlp.gate_up" in refusal(recipe="blockwise")
    short = ["data.seq_len=24", "train.micro_batch_size=1"]
    cut = ["model.blocks.attn={type: attention, num_heads: 6, num_kv_heads: 2, head_dim: 8}", "parallel.tensor=2"]
    gathered = ["data.seq_len=40", "train.micro_batch_size=2", "parallel.tensor=2", "parallel.sequence=true"]
    twice = ["precision.emulate=false", "precision.recipe=delayed", "parallel.recompute={attn: full}"]
    for overrides, message in (
        (twice, "precision.recipe = 'delayed': expected tensorwise, or emulate true, or parallel.recompute none"),
        ([*gathered, "precision.skip=[mamba]"], r"2 x seq_len 40 / parallel.tensor 2 = 40 tokens; expected a multiple"),
        (short, "1 x seq_len 24 = 24 tokens; expected a multiple of 16"),
        ([*cut, "precision.skip=[mamba]"], "attn.qkv has 40 outputs .* parallel.tensor sets it"),
    ):
        with pytest.raises(UserError, match=message):
            resolve(load(_quickstart(), [*FP8, *overrides], RunConfig))


def _quickstart():
    return ROOT / "configs" / "runs" / "quickstart.yaml"


def test_resuming_is_exact_and_keeps_the_recipe(tiny, hybridtron):
    delayed = [*FP8, "precision.recipe=delayed", "schedule.type=constant", "model.backend=torch"]
    halves, whole = tiny.parent / "halves", tiny.parent / "whole"

    def train(folder, *overrides):
        return hybridtron("train", tiny, *delayed, f"folder={folder}", *overrides)

    assert train(whole).returncode == 0
    assert_statistics(whole)
    assert train(halves, "train.steps=10").returncode == 0
    common = torch.load(halves / "step_00000010" / "common.pt", weights_only=True)
    histories = common["fp8"]["amax_history"]
    assert histories["layers.2.mixer.qkv"].shape == (16, 3, 1)
    assert "layers.0.mixer.in_proj" not in histories
    assert (histories["layers.2.mixer.qkv"][:10] > 0).all()
    refused = train(halves, "--resume", "precision.recipe=tensorwise")
    assert refused.returncode == 2
    assert "precision.recipe = tensorwise: expected delayed as in" in refused.stderr
    assert "or precision.change_on_resume true beside it" in refused.stderr
    assert train(halves, "--resume").returncode == 0
    assert losses(halves) == losses(whole)
    assert hybridtron("convert", "reshard", halves, tiny.parent / "resharded", "--files", "2").returncode == 0
    kept = torch.load(tiny.parent / "resharded" / "step_00000020" / "common.pt", weights_only=True)["fp8"]
    at_the_end = torch.load(halves / "step_00000020" / "common.pt", weights_only=True)["fp8"]
    assert all(torch.equal(kept["amax_history"][name], history) for name, history in at_the_end["amax_history"].items())
    longer = ["train.steps=22", "precision.recipe=tensorwise", "precision.change_on_resume=true"]
    changed = train(halves, "--resume", *longer)
    assert changed.returncode == 0, changed.stderr
    assert "precision.recipe delayed -> tensorwise from step 21" in changed.stderr


def assert_statistics(folder):
    """A row for each logged step, with every quantized linear and no other, and a picture."""
    rows = [json.loads(line) for line in (folder / "fp8.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 21))
    for row in rows:
        assert list(row["linears"])[:3] == ["layers.0.mixer.out_proj", "layers.1.mixer.gate_up", "layers.1.mixer.down"]
        assert len(row["linears"]) == 7
        for operands in row["linears"].values():
            assert all(operands[role]["amax"] > 0 for role in ("x", "weight", "grad"))
            assert all(0 <= operands[role][share] < 0.2 for role in operands for share in ("saturated", "flushed"))
    # Activations grow out of the history of a run that has just begun, and saturate.
    assert any(operands["x"]["saturated"] > 0 for row in rows for operands in row["linears"].values())
    assert (folder / "fp8.png").read_bytes().startswith(b"\x89PNG")


class Losses(Callback):
    """Keep the loss of each step."""

    def __init__(self):
        self.losses = []

    def after_step(self, context, row, logged):
        self.losses.append(row["step_loss"])


@functools.cache
def quickstart_losses(precision: str) -> list[float]:
    """Train the quickstart's model, at its size, for 200 steps of 64 tokens.

    Mamba's heads are 24 wide instead of 32: so its in_proj has a multiple of 16 outputs, and all linears are FP8.
    """
    fewer = ["train.global_batch_size=2", "train.micro_batch_size=2", "data.seq_len=32", "train.eval_sequences=2"]
    steps = ["train.steps=200", "schedule.decay_steps=66", "model.blocks.mamba.head_dim=24", "model.backend=torch"]
    kept = Losses()
    train_proxy(resolve(load(_quickstart(), [*fewer, *steps, f"precision={precision}"], RunConfig)), [kept])
    assert len(kept.losses) == 200
    return kept.losses


@pytest.mark.parametrize("recipe", ["tensorwise", "delayed"])
def test_fp8_trains_within_two_percent_of_bf16(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the tokens of the standard library are prepared
    bf16 = quickstart_losses("{format: bf16}")
    fp8 = quickstart_losses(f"{{format: fp8, emulate: true, recipe: {recipe}}}")
    assert fmean(fp8[100:]) == pytest.approx(fmean(bf16[100:]), rel=0.02)
    assert fmean(fp8[-20:]) < 2.8 < 5 < bf16[0]
    assert fp8 != bf16
