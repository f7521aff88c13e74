"""Any PyTorch module put through the tasks by a factory."""

import functools
import json

import pytest
import torch
from torch import nn

from hybridtron import mad
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.models.module import from_module
from hybridtron.mad.models.proxy_model import ProxyModel, initial_values
from hybridtron.mad.training.presets import preset

SMALL = {"preset": preset("smoke", max_steps=2), "setting": {"seq_len": 8}, "tasks": ["compression", "memorization"]}


class Recurrent(nn.Module):
    """A model that hybridtron has no primitive for."""

    modes: list[tuple[bool, bool]] = []  # noqa: RUF012  # training mode, and whether gradients are computed

    def __init__(self, vocab_size, width=16, decoded=None):
        """With `decoded`, be an auto-encoder of so many ids."""
        super().__init__()
        self.positions = None if decoded is None else nn.Parameter(torch.randn(decoded, width))
        self.embedding = nn.Embedding(vocab_size, width)
        self.layer = nn.GRU(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, tokens):
        self.modes.append((self.dropout.training, torch.is_grad_enabled()))
        x = self.layer(self.embedding(tokens))[0]
        return self.head(self.dropout(x if self.positions is None else x[:, -1:] + self.positions))


def recurrent(task, vocab_size, max_length):
    return Recurrent(vocab_size, decoded=max_length if task == "compression" else None)


def causal(vocab_size):
    return Recurrent(vocab_size)


def rows_of(score):
    return {(name, seed): row for name, task in score.tasks.items() for by_seed in task.best.values()
            for seed, row in by_seed.items()}  # fmt: skip


def test_a_module_that_is_no_primitive_is_scored():
    Recurrent.modes.clear()
    score = mad.score(recurrent, seeds=2, **SMALL)
    assert (score.architecture, score.parameters, score.state_size) == ("recurrent", 6 * 16**2 + 6 * 16, None)
    rows = rows_of(score)
    assert set(rows) == {(task, seed) for task in SMALL["tasks"] for seed in (0, 1)}
    assert len({row["test_loss"] for row in rows.values()}) == 4
    assert {(True, True), (False, False)} == set(Recurrent.modes)
    assert json.loads(json.dumps(score.as_json()))["state_size"] is None
    assert "recurrent" in str(score)


def as_a_factory(task, vocab_size, max_length):
    """The model that MAD trains for the layers mh-attention and mlp, as a factory of modules."""
    config = from_layers(["mh-attention", "mlp"]).model(vocab_size, max_length)
    model = ProxyModel(config, task == "compression")
    model.load_state_dict(initial_values(config, task == "compression", torch.initial_seed()))
    return model


def test_the_module_of_an_architecture_trains_as_the_architecture_does(tmp_path):
    layers = mad.score(["mh-attention", "mlp"], seeds=[3], **SMALL)
    module = mad.score(as_a_factory, seeds=[3], out=tmp_path, **SMALL)
    found = rows_of(module)
    for name, expected in rows_of(layers).items():
        for key in ("test_loss", "test_micro", "test_macro", "curve"):
            assert found[name][key] == expected[key]
    assert module.parameters == layers.parameters
    rows, warnings = mad.read_rows(tmp_path)
    assert (len(rows), warnings) == (2, [])


def test_a_fingerprint_follows_the_code_and_the_initial_values():
    wide, narrow = (from_module(lambda vocab_size, width=width: Recurrent(vocab_size, width), "r") for width in (16, 8))
    assert wide.fingerprint() != narrow.fingerprint()
    assert from_module(recurrent).fingerprint() == from_module(recurrent).fingerprint()
    assert from_module(recurrent, "other").fingerprint() != from_module(recurrent).fingerprint()


def test_a_fingerprint_follows_what_is_bound_to_a_factory():
    def slope(vocab_size, leak=None):
        model = Recurrent(vocab_size, 8)
        model.leak = leak  # changes neither the text of the module nor its parameters
        return model

    def bound(leak):
        return lambda vocab_size: slope(vocab_size, leak)

    for small, large in ((functools.partial(slope, leak=1), functools.partial(slope, leak=2)), (bound(1), bound(2))):
        assert from_module(small, "s").fingerprint() == from_module(small, "s").fingerprint()
        assert from_module(small, "s").fingerprint() != from_module(large, "s").fingerprint()


def flat(vocab_size):
    return nn.Sequential(nn.Embedding(vocab_size, vocab_size), nn.Flatten())


def no_module(vocab_size):
    return vocab_size


def needs_more(vocab_size, depth):
    return Recurrent(vocab_size)


@pytest.mark.parametrize(
    ("factory", "arguments", "message"),
    [
        (flat, {}, "flat: returns [2, 128] in compression; expected logits [batch 2, 8 ids, 16]"),
        (no_module, {}, "factory: returned int; expected a torch.nn.Module"),
        (needs_more, {}, "needs_more: needs depth; expected a factory of task, vocab_size, max_length alone"),
        (causal, {}, "causal: is causal in compression, where it can repeat its input; expected an auto-encoder"),
        (Recurrent(16), {}, "Recurrent: is a built model; expected what builds one, for each vocabulary"),
        (recurrent, {"iso_state": True}, "iso_state: is for layers of MAD"),
        (
            lambda vocab_size: Recurrent(vocab_size),
            {"processes": 2},
            "processes = 2: <lambda> cannot be sent to another",
        ),
    ],
)
def test_errors_name_the_factory_and_what_is_expected(factory, arguments, message):
    with pytest.raises(UserError) as found:
        mad.score(factory, **SMALL, **arguments)
    assert str(found.value).startswith(message)
