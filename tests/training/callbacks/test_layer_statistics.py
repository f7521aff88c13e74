"""Per-layer norms of a run, beside a plain computation of them; tests/distributed has them in every layout."""

from __future__ import annotations

import json
import math

import pytest
import torch

import hybridtron as ht
from hybridtron.training.callbacks.layer_statistics import plot_layer_statistics

CHANGED = ["schedule.warmup_steps=1", "train.layer_statistics_every=2"]


class PlainStatistics(ht.Callback):
    """Compute activations and updates of step 2 by itself, and count the hooks of layers in every step."""

    def __init__(self):
        self.activations, self.before, self.ratios, self.hooks = {}, {}, {}, []

    def before_step(self, context):
        (model,) = context.chunks
        if context.state.step == 1:
            batch = context.config.train.global_batch_size
            tokens = torch.as_tensor(context.corpus.train.samples(range(batch, 2 * batch)))[:, :-1]
            with torch.no_grad():
                x = model.embed(tokens)
                self.activations["embedding"] = (None, rms(x))
                for name, layer in model.layers.items():
                    after = layer(model.begin(x)).states[0]
                    self.activations[name] = (rms(after - x), rms(after))
                    x = after
            self.before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def after_step(self, context, row, logged):
        (model,) = context.chunks
        self.hooks.append(sum(len(layer._forward_hooks) for layer in model.layers.values()))
        if context.state.step == 2:
            for part in ("embedding.", *(f"layers.{i}." for i in range(4))):
                names = [name for name in self.before if name.startswith(part)]
                changed = [
                    (parameter - self.before[name]) for name, parameter in model.named_parameters() if name in names
                ]
                whole = norm(changed) / norm([self.before[name] for name in names])
                self.ratios[part.removeprefix("layers.").rstrip(".")] = whole


def norm(tensors):
    return math.sqrt(sum(float(tensor.detach().double().square().sum()) for tensor in tensors))


def rms(x):
    return float(x.detach().double().square().mean().sqrt())


@pytest.fixture
def plain():
    return PlainStatistics()


@pytest.fixture
def run(tiny, plain):
    ht.train(tiny, *CHANGED, "train.steps=5", callbacks=[plain])
    return ht.train(tiny, *CHANGED, "train.steps=6", resume=True)


def test_rows_hold_what_a_plain_computation_gives(run, plain):
    rows = [json.loads(line) for line in (run.folder / "layer_statistics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert list(rows[0]["layers"]) == ["embedding", "0", "1", "2", "3", "output"]
    assert [rows[0]["layers"][str(i)]["block"] for i in range(4)] == ["mamba", "mlp", "attn", "ffn"]
    layers = rows[0]["layers"]
    for layer, (output, residual) in plain.activations.items():
        assert layers[layer]["output_rms"] == (output if output is None else pytest.approx(output, rel=1e-5))
        assert layers[layer]["residual_rms"] == pytest.approx(residual, rel=1e-5)
    assert {layer: layers[layer]["update_ratio"] for layer in plain.ratios} == pytest.approx(plain.ratios, rel=1e-5)
    for row in rows:
        squares = [numbers["grad_norm"] ** 2 for numbers in row["layers"].values()]
        assert math.sqrt(sum(squares)) == pytest.approx(run.metrics[row["step"] - 1]["grad_norm"], rel=1e-5)
    assert plain.hooks == [0] * 5
    assert (run.folder / "layer_statistics.png").read_bytes().startswith(b"\x89PNG")


def test_they_change_no_loss_and_write_nothing_when_off(tiny, tmp_path):
    on = ht.train(tiny, *CHANGED, "train.steps=3")
    off = ht.train(tiny, "schedule.warmup_steps=1", "train.steps=3", f"folder={tmp_path / 'off'}")
    assert [row["loss"] for row in on.metrics] == [row["loss"] for row in off.metrics]
    assert not list(off.folder.glob("layer_statistics*"))


def test_a_picture_has_blanks_for_numbers_that_are_missing(tmp_path):
    file = tmp_path / "picture.png"
    plot_layer_statistics([{"step": 1}], file, "none")
    assert not file.exists()
    layers = {"0": {"block": "mlp", "output_rms": None, "grad_norm": 0.0}, "1": {"grad_norm": 2.0}}
    plot_layer_statistics([{"step": 1, "layers": layers}, {"step": 2, "layers": {"1": {}}}], file, "some")
    assert file.exists()
