"""Values of an earlier layer that later ones read: within a model, between its stages, and token by token."""

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.residual.stream import Packing, Stream, carried_at
from hybridtron.model.stage import Stage, cut
from tests.model.residual.carrying import CarryingConfig


def config(pattern="mlp c mlp c mlp c", channels=8):
    blocks = {"c": CarryingConfig(hidden_size=16, channels=channels), "mlp": {"type": "mlp", "ffn_hidden_size": 24}}
    return build(
        {"hidden_size": 16, "vocab_size": 32, "init_std": 0.5, "blocks": blocks, "pattern": pattern}, ModelConfig
    )


def built(model, stage=None, width=0, recompute="none"):
    made = LanguageModel(model, TorchBackend(), stage, lambda block: recompute, width)
    initialize(made, model, seed=0)
    return made


@pytest.fixture
def tokens():
    return torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))


def test_later_layers_read_the_first_value(tokens):
    model = built(config("c c"))
    first, second = model.layers["0"], model.layers["1"]
    x = model.embedding(tokens)
    value = first.mixer.in_proj(first.norm(x))
    x = x + first.mixer.out_proj(value.cumsum(0))
    mixed = second.mixer.in_proj(second.norm(x)) * value.tanh()
    x = x + second.mixer.out_proj(mixed.cumsum(0))
    torch.testing.assert_close(model(tokens), model.head(model.final_norm(x)))


@torch.no_grad()
def test_prefill_and_steps_give_the_logits_of_whole_sequences(tokens):
    model = built(config())
    _, state = model.prefill(tokens[:, :4], model.initial_state(2))
    for position in range(4, 9):
        logits, state = model.step(tokens[:, position], state)
        torch.testing.assert_close(logits, model.logits(tokens)[:, position], rtol=1e-4, atol=1e-5)


def gradients(chunks, tokens):
    output = None
    for chunk in chunks:
        chunk.set_input_tensor([output])
        output = chunk(tokens, tokens.roll(-1, 1))
    output[0].mean().backward()
    return {name: parameter.grad for chunk in chunks for name, parameter in chunk.named_parameters()}


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_values_and_gradients_travel_between_stages(tokens, recompute):
    model = config()
    stages = cut(model, 3, 9)
    width = Packing(model).widest(stages)
    assert width == 16 + 8
    whole = gradients([built(model)], tokens)
    parts = gradients([built(model, stage, width, recompute) for stage in stages], tokens)
    assert parts.keys() == whole.keys()
    for name in whole:
        torch.testing.assert_close(parts[name], whole[name], msg=name)


def test_only_what_is_read_later_travels():
    model = config("mlp c c mlp")
    assert [carried_at(model, layer) for layer in range(4)] == [{}, {}, {"first_value": 8}, {}]


@pytest.mark.parametrize("sequence", [False, True])
def test_packing_is_undone(sequence):
    """Two tensor-parallel processes with 4 of 8 channels each; under sequence parallelism with half of the tokens."""
    packing = Packing(config(), 2, sequence, 0)
    packing = Packing(packing.config, 2, sequence, packing.widest([Stage(0, 2, 0, 3), Stage(1, 2, 3, 6)]) + 3)
    state, value = torch.randn(3 if sequence else 6, 2, 16), torch.randn(6, 2, 4)
    packed = packing.pack(Stream((state,), {"first_value": value}), 3)
    assert packed.shape == (len(state), 2, 16 + (8 if sequence else 4) + 3)
    (back,), carried = packing.unpack(packed, 3)
    assert torch.equal(back, state)
    assert torch.equal(carried["first_value"], value)


def test_a_plain_stream_travels_as_it_is():
    model = config("mlp mlp")
    x = torch.randn(3, 2, 16)
    packing = Packing(model, width=16)
    assert packing.pack(Stream((x,), {}), 1) is x
    assert packing.unpack(x, 1) == Stream((x,), {})


def test_values_that_no_later_layer_reads_do_not_travel():
    """Between stages of which the later ones are all narrower than what the first one has made."""
    packing = Packing(config("c mlp"), width=16)
    x = torch.randn(3, 2, 16)
    assert packing.pack(Stream((x,), {"first_value": torch.randn(3, 2, 8)}), 1) is x


def test_values_of_different_widths_are_refused():
    blocks = {name: CarryingConfig(hidden_size=16, channels=channels) for name, channels in (("a", 8), ("b", 4))}
    with pytest.raises(UserError, match=r"blocks.b = 'first_value of 4 channels': expected 8, as in a"):
        build({"hidden_size": 16, "blocks": blocks, "pattern": "a b"}, ModelConfig)
