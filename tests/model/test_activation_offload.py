"""Activations that wait in CPU memory: gradients stay the same bit for bit, and copies come and go in their order."""

import gc
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build, load
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.residual.stream import Packing
from hybridtron.model.stage import cut
from hybridtron.ops.moe.attached_loss import attached_losses_scale
from hybridtron.training.config import RunConfig
from tests.composer.grow.test_families import FAMILIES, MODELS
from tests.mixers.test_contract import CASES, PRIMITIVES
from tests.model.late_host import offloaded
from tests.model.residual.test_topologies import TOPOLOGIES

WIDTH, VOCAB, BATCH, SEQ_LEN = 32, 64, 2, 20
TOKENS = torch.arange(BATCH * SEQ_LEN).reshape(BATCH, SEQ_LEN) * 7 % VOCAB
SMALL = {"attn": {"type": "attention", "num_heads": 4}, "mlp": {"type": "swiglu", "ffn_hidden_size": 48}}


def config_of(blocks=SMALL, pattern="2*(attn mlp)", **keys):
    sections = {"hidden_size": WIDTH, "vocab_size": VOCAB, "blocks": blocks, "pattern": pattern, **keys}
    return build(sections, ModelConfig)


def built(config, recompute="none", stage=None, width=0):
    def word(name):
        return "none" if recompute == "selective" and not config.blocks[name].capabilities.selective else recompute

    model = LanguageModel(config, TorchBackend(), stage, word, width)
    initialize(model, config, seed=0)
    return model


def gradients(model, tokens=TOKENS, labels=None):
    """Return those of the parameters, and the losses."""
    model.zero_grad()
    with attached_losses_scale(1.0):
        losses = model(tokens, tokens if labels is None else labels)
        sum(each.mean() for each in losses).backward()
    return [each.grad for each in model.parameters()], losses


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


def assert_offloading_changes_nothing(model, count, tokens=TOKENS, labels=None):
    """Also nothing may be left of what was copied."""
    expected, losses = gradients(model, tokens, labels)
    host = offloaded(model, count)
    found, same_losses = gradients(model, tokens, labels)
    assert_same(found, expected)
    assert_same(same_losses, losses)
    assert host.sent > 0
    assert set(host.living.values()) == {0}


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_for_every_primitive(case):
    assert_offloading_changes_nothing(built(config_of({"x": CASES[case]}, "3*x")), 2)


@pytest.mark.parametrize(
    ("residual", "recompute"),
    [
        *(("plain", how) for how in ("none", "selective", "full")),
        *(("parallel", "none"), ("sandwich", "selective")),
        *((residual, how) for residual in ("hyper_connections", "attention_residuals") for how in ("none", "full")),
    ],
)
def test_all_primitives_together_in_every_topology(residual, recompute):
    """With values that layers carry on, and multi-token prediction, whose layers are not offloaded."""
    blocks = {name: {"type": name, **keys} for name, keys in PRIMITIVES.items()}
    more = {"residual": TOPOLOGIES[residual], "mtp": {"depth": 2, "pattern": "attention moe"}}
    config = config_of(blocks, f"{' '.join(blocks)} 2*rwkv7", **more)
    labels = torch.cat([TOKENS, TOKENS[:, :2]], 1)
    assert_offloading_changes_nothing(built(config, recompute), len(blocks), labels=labels)


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_same_for_every_family(name):
    """A layer of each of its blocks, at the smallest size."""
    run = load(Path(MODELS / f"{name}.yaml"), ["size=70m", f"model.vocab_size={VOCAB}"], RunConfig)
    names = tuple(dict.fromkeys(run.model.layer_names))
    sections = run.model.model_dump(serialize_as_any=True)
    config = build({**sections, "pattern": " ".join(names)}, ModelConfig)
    model = LanguageModel(config, TorchBackend())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.uniform_(-0.05, 0.05)  # a tenth of the time that values of the config take
    assert_offloading_changes_nothing(model, None, TOKENS[:1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_layers_keep_is_almost_nothing_but_parameters(dtype):
    config = config_of({"x": CASES["mamba2"]}, "4*x")
    model = LanguageModel(config, TorchBackend(dtype))
    initialize(model, config, seed=0)
    host, kept = offloaded(model, None), []
    model.offload.on_kept = kept.append
    losses = model(TOKENS, TOKENS)
    parameters = {each.untyped_storage()._cdata for each in model.parameters()}
    assert sum(each.untyped_storage().nbytes() for each in kept if each.untyped_storage()._cdata not in parameters) == 0
    assert host.living["copies"] == host.sent > 4 * 4 * TOKENS.numel() * WIDTH * dtype.itemsize
    del losses
    assert host.living["copies"] == 0


class TestOrder:
    """Of copies, beside what the layers compute."""

    def events(self, count, layers=4):
        model = built(config_of(pattern=f"{layers}*mlp"))
        host = offloaded(model, count)
        for i, layer in enumerate(model.layer_list):
            layer.register_forward_pre_hook(lambda *_, i=i: host.events.append((f"forward {i}", None)))
            layer.register_full_backward_hook(lambda *_, i=i: host.events.append((f"backward {i} ended", None)))
            layer.mixer.register_full_backward_pre_hook(lambda *_, i=i: host.events.append((f"backward {i}", None)))
        gradients(model)
        return [name for name, _ in host.events]

    def test_layers_leave_after_their_forward_pass_and_return_while_the_next_one_goes_back(self):
        """The device holds two of them at most, and waits for nothing that has not had a layer's time."""
        assert self.events(3) == [
            "forward 0", "send", "forward 1", "send", "sent", "forward 2", "send", "sent", "forward 3", "sent",
            "fetch", "backward 3", "fetch", "backward 2", "fetched", "fetch", "backward 1", "fetched", "backward 0",
            "fetched",
        ]  # fmt: skip

    def test_the_last_layer_returns_when_its_own_backward_pass_begins(self):
        events = self.events(2, layers=2)
        assert events == ["forward 0", "send", "forward 1", "send", "sent", "sent", "fetch", "fetch", "backward 1",
                          "fetched", "backward 0", "fetched"]  # fmt: skip

    def test_without_layers_to_offload_nothing_is_copied(self):
        assert not {"send", "fetch"} & set(self.events(0))


def test_micro_batches_in_flight_do_not_mix():
    """As in 1F1B: three forward passes, then backward passes from the first on."""
    model = built(config_of())
    batches = [TOKENS.roll(i, 1) for i in range(3)]
    expected = [gradients(model, tokens)[0] for tokens in batches]
    host = offloaded(model, 3)
    losses = [model(tokens, tokens) for tokens in batches]
    for of_batch, each in zip(expected, losses, strict=True):
        model.zero_grad()
        sum(loss.mean() for loss in each).backward()
        assert_same([parameter.grad for parameter in model.parameters()], of_batch)
    del losses, each
    assert host.living["copies"] == 0


@pytest.mark.parametrize("residual", ["plain", "hyper_connections", "attention_residuals"])
def test_stages_hand_over_streams(residual):
    """Of four stages, each with layers in CPU memory, two micro-batches at a time; values of rwkv7 travel too."""
    blocks = {**SMALL, "time": CASES["rwkv7"]}
    config = config_of(blocks, "time mlp time attn time mlp mlp", residual=TOPOLOGIES[residual])
    stages = cut(config, 3, SEQ_LEN)
    models = [built(config, stage=stage, width=Packing(config).widest(stages)) for stage in stages]

    def passes():
        found = []
        for model in models:
            model.zero_grad()
        for tokens in (TOKENS, TOKENS.roll(1, 1)):
            received = []
            for model in models:
                if received:
                    model.set_input_tensor([received[-1].detach().requires_grad_()])
                received.append(model(tokens, tokens if model.stage.is_last else None))
                found.append((model, model.received, received[-1]))
        for first in (0, 3):
            gradient = None
            for model, given, made in reversed(found[first : first + 3]):
                if gradient is None:
                    sum(each.mean() for each in made).backward()
                else:
                    made.backward(gradient)
                gradient = None if model.stage.is_first else given.grad
        return [each.grad for model in models for each in model.parameters()]

    expected = passes()
    for model in models:
        offloaded(model, 2)
    assert_same(passes(), expected)


def test_without_gradients_nothing_is_copied():
    model = built(config_of())
    host = offloaded(model, None)
    with torch.no_grad():
        model(TOKENS, TOKENS)
    assert host.events == []


def test_a_graph_can_be_used_twice():
    model = built(config_of())
    once, _ = gradients(model)
    offloaded(model, None)
    model.zero_grad()
    loss = sum(each.mean() for each in model(TOKENS, TOKENS))
    loss.backward(retain_graph=True)
    loss.backward()
    for parameter, expected in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * expected)


class TestFailures:
    def test_an_exception_in_a_layer_leaves_the_hooks(self, monkeypatch):
        model = built(config_of())
        expected, _ = gradients(model)
        host = offloaded(model, None)
        monkeypatch.setattr(model.layer_list[2].mixer, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(TOKENS, TOKENS)
        sent = list(host.events)
        x = torch.randn(8, requires_grad=True)
        x.square().sum().backward()
        assert host.events == sent
        gc.collect()
        assert host.living["copies"] == 0
        monkeypatch.undo()
        assert_same(gradients(model)[0], expected)

    def test_what_was_on_its_way_back_is_waited_for_before_the_next_pass(self):
        """Its memory would be used again while it is written."""
        model = built(config_of())
        expected, _ = gradients(model)
        host = offloaded(model, 3)
        last = model.layer_list[-1].mixer
        failing = last.register_full_backward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            gradients(model)
        assert host.events[-1][0] == "fetch"
        failing.remove()
        assert_same(gradients(model)[0], expected)
        assert model.offload.arriving == []


def test_hooks_of_whoever_calls_the_model_stay_for_other_layers():
    model, seen = built(config_of()), []
    offloaded(model, 2)
    with saved_tensors_hooks(lambda tensor: seen.append(tensor) or tensor, lambda tensor: tensor):
        loss, _ = model(TOKENS, TOKENS)
    loss.mean().backward()
    assert seen
