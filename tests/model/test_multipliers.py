"""Multipliers of the embedding, of what layers add, of the logits, and of attention's scores."""

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

MULTIPLIERS = {"embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0}


def built(scale=None, position="pre", **keys):
    attention = {"type": "attention", "num_heads": 4, "norm_position": position, "softmax_scale": scale}
    blocks = {"attn": attention, "mlp": {"type": "mlp", "ffn_hidden_size": 24, "norm_position": position}}
    model = {"hidden_size": 16, "vocab_size": 32, "init_std": 0.5, "blocks": blocks, "pattern": "2*(attn mlp)", **keys}
    config = build(model, ModelConfig)
    language_model = LanguageModel(config, TorchBackend())
    initialize(language_model, config, seed=0)
    return language_model


@pytest.fixture
def tokens():
    return torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("position", ["pre", "post"])
def test_logits_are_those_of_the_definition(tokens, position):
    model = built(position=position, **MULTIPLIERS)
    x = model.embedding(tokens) * 3
    for layer in model.layers.values():
        x = x + 0.4 * (layer.norm(layer.mixer(x)) if position == "post" else layer.mixer(layer.norm(x)))
    torch.testing.assert_close(model(tokens), model.head(model.final_norm(x)) / 2)


@torch.no_grad()
@pytest.mark.parametrize("position", ["pre", "post"])
def test_steps_give_the_logits_of_whole_sequences(tokens, position):
    model = built(0.7, position, **MULTIPLIERS)
    state, logits = model.initial_state(2), []
    for column in tokens.unbind(1):
        one, state = model.step(column, state)
        logits.append(one)
    torch.testing.assert_close(torch.stack(logits, 1), model.logits(tokens), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_scores_are_multiplied_by_the_scale(tokens):
    """Half the default, 1 / sqrt(4), is the default with half the queries."""
    scaled, plain = built(0.25), built()
    for layer in list(plain.layers.values())[::2]:
        layer.mixer.qkv.weight[:16] /= 2
    torch.testing.assert_close(scaled(tokens), plain(tokens))


@pytest.mark.parametrize("key", MULTIPLIERS)
def test_each_changes_the_logits(tokens, key):
    assert not torch.allclose(built(**{key: 2.0})(tokens), built()(tokens), rtol=0.01)
