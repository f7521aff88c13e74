"""Norms after layers, and norms that multiply by 1 + weight."""

import pytest
import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

BLOCKS = {
    "attn": {"type": "attention", "num_heads": 2, "norm_position": "post"},
    "conv": {"type": "short_conv"},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 48, "norm_position": "post"},
}


def model_of(pattern, **keys):
    config = build({"hidden_size": 32, "vocab_size": 64, "blocks": BLOCKS, "pattern": pattern, **keys}, ModelConfig)
    model = LanguageModel(config, TorchBackend(norm_eps=config.norm_eps))
    initialize(model, config, 0)
    return model


def test_the_norm_of_a_layer_stands_where_its_block_says():
    model = model_of("attn conv")
    x = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(0))
    after, before = model.layers.values()
    outputs = [layer(model.begin(x)).states[0] for layer in (after, before)]
    torch.testing.assert_close(outputs[0], x + after.norm(after.mixer(x)))
    torch.testing.assert_close(outputs[1], x + before.mixer(before.norm(x)))
    assert not torch.allclose(outputs[0], x + after.mixer(after.norm(x)), atol=1e-2)


def test_zero_centered_norms_begin_as_plain_ones_and_add_one_to_their_weights():
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    plain, centered = model_of("conv mlp"), model_of("conv mlp", zero_centered_norms=True)
    norms = [name for name, _ in centered.named_parameters() if "norm" in name]
    assert len(norms) == 3
    assert all(not centered.get_parameter(name).any() for name in norms)
    with torch.no_grad():
        assert torch.equal(centered.logits(tokens), plain.logits(tokens))
        for seed, name in enumerate(norms):
            noise = torch.randn(32, generator=torch.Generator().manual_seed(seed))
            centered.get_parameter(name).copy_(noise)
            plain.get_parameter(name).copy_(1 + noise)
        assert torch.equal(centered.logits(tokens), plain.logits(tokens))


@torch.no_grad()
def test_generation_puts_norms_where_training_does():
    model = model_of("attn mlp conv mlp", zero_centered_norms=True)
    for seed, parameter in enumerate(model.parameters()):
        parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)), alpha=0.1)
    tokens = torch.randint(64, (2, 9), generator=torch.Generator().manual_seed(0))
    state, steps = model.initial_state(2), []
    for token in tokens.unbind(1):
        logits, state = model.step(token, state)
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), model.logits(tokens), rtol=0, atol=1e-5)


def test_a_branch_has_no_norm_of_its_own():
    branches = [BLOCKS["conv"], BLOCKS["mlp"]]
    blocks = {"x": {"type": "parallel", "branches": branches}}
    with pytest.raises(UserError, match=r"branches\[1\].norm_position"):
        build({"hidden_size": 32, "vocab_size": 64, "blocks": blocks, "pattern": "x"}, ModelConfig)
