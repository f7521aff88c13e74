"""Residual topologies beside layers of transformers, on equal weights and around the same mixers of ours."""

import pytest
import torch
from torch import nn

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

pytest.importorskip("transformers")
WIDTH = 32


class Ours(nn.Module):
    """A mixer of ours where transformers has one of its own."""

    def __init__(self, mixer, attends):
        super().__init__()
        self.mixer, self.attends = mixer, attends

    def forward(self, hidden_states, *args, **kwargs):
        y = self.mixer(hidden_states.transpose(0, 1)).transpose(0, 1)
        return (y, None) if self.attends else y


class Nothing(nn.Module):
    def forward(self, hidden_states, **kwargs):
        return hidden_states


@pytest.fixture
def x():
    return torch.randn(2, 7, WIDTH, generator=torch.Generator().manual_seed(1))


def built(residual):
    """A model of 4 x (attention, MLP) with noise on every parameter."""
    blocks = {"attn": {"type": "attention", "num_heads": 4}, "mlp": {"type": "swiglu", "ffn_hidden_size": 48}}
    keys = {"hidden_size": WIDTH, "vocab_size": 16, "init_std": 0.15, "norm_eps": 1e-6, "residual": residual}
    config = build({**keys, "blocks": blocks, "pattern": "4*(attn mlp)"}, ModelConfig)
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def copy(theirs, ours):
    with torch.no_grad():
        theirs.copy_(ours.view_as(theirs))


def assert_same(model, x, theirs, pairs):
    """Compare outputs before the output projection, and the gradients of x and of pairs of parameters."""
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    stream = model.run_layers(model.begin(x.transpose(0, 1)))
    y, expected = model.final_norm(model.end(stream)).transpose(0, 1), theirs(other)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)
    factor = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    own = torch.autograd.grad((y * factor).sum(), [x, *(mine for mine, _ in pairs)])
    found = torch.autograd.grad((expected * factor).sum(), [other, *(their for _, their in pairs)])
    for mine, their in zip(own, found, strict=True):
        assert float(their.norm()) > 1e-3
        assert float((mine.view_as(their) - their).norm() / their.norm()) < 1e-3


def test_hyper_connections_are_those_of_deepseek_v4(x):
    from transformers.models.deepseek_v4 import modeling_deepseek_v4 as published

    config = published.DeepseekV4Config(hidden_size=WIDTH, hc_mult=3, hc_sinkhorn_iters=5, rms_norm_eps=1e-6)
    model = built({"type": "hyper_connections", "streams": 3, "sinkhorn_iterations": 5})
    ours, pairs = list(model.layers.values()), []
    layers = []
    for first, second in zip(ours[::2], ours[1::2], strict=True):
        layer = published.DeepseekV4DecoderLayer.__new__(published.DeepseekV4DecoderLayer)
        nn.Module.__init__(layer)
        layer.self_attn, layer.mlp = Ours(first.mixer, True), Ours(second.mixer, False)
        for mine, norm, name in ((first, "input_layernorm", "attn_hc"), (second, "post_attention_layernorm", "ffn_hc")):
            setattr(layer, norm, published.DeepseekV4RMSNorm(WIDTH, 1e-6))
            setattr(layer, name, published.DeepseekV4HyperConnection(config))
            theirs = getattr(layer, name)
            pairs += [(getattr(mine.residual, own), getattr(theirs, their)) for own, their in
                      (("weight", "fn"), ("bias", "base"), ("scale", "scale"))]  # fmt: skip
            pairs.append((mine.norm.weight, getattr(layer, norm).weight))
        layers.append(layer)
    head, norm = published.DeepseekV4HyperHead(config), published.DeepseekV4RMSNorm(WIDTH, 1e-6)
    end = model.residual_end
    pairs += [(end.weight, head.hc_fn), (end.bias, head.hc_base), (end.scale, head.hc_scale)]
    pairs.append((model.final_norm.weight, norm.weight))
    for mine, theirs in pairs:
        copy(theirs, mine)

    def forward(x):
        streams = x.unsqueeze(2).expand(-1, -1, 3, -1).contiguous()
        for layer in layers:
            streams = layer(streams)
        return norm(head(streams))

    assert_same(model, x, forward, pairs)


def test_attention_residuals_are_those_of_inkling_2(x):
    """It scales scores by 1 / sqrt(width), which here is a part of the queries."""
    from transformers.models.inkling2 import modeling_inkling2 as published

    config = published.Inkling2TextConfig(
        hidden_size=WIDTH, num_hidden_layers=4, n_layers_per_attn_res_block=2, rms_norm_eps=1e-6,
        layer_types=["hybrid_sliding"] * 4, vocab_size=16, num_experts=2, num_local_experts=2,
    )  # fmt: skip
    model = built({"type": "attention_residuals", "block_size": 4, "normed_values": True})
    theirs = published.Inkling2TextModel(config)
    pairs, queries = [(model.final_norm.weight, theirs.norm.weight)], [(model.residual_end, theirs.final_input)]
    ours = list(model.layers.values())
    for layer, first, second in zip(theirs.layers, ours[::2], ours[1::2], strict=True):
        layer.self_attn, layer.mlp = Ours(first.mixer, True), Ours(second.mixer, False)
        layer.post_attention_convolution = layer.post_mlp_convolution = Nothing()
        pairs += [(first.norm.weight, layer.input_layernorm.weight)]
        pairs += [(second.norm.weight, layer.post_attention_layernorm.weight)]
        queries += [(first.residual, layer.attention_input), (second.residual, layer.mlp_input)]
    for mine, other in queries:
        if other is not None:
            copy(other.query, mine.query * WIDTH**0.5)
    for mine, other in pairs:
        copy(other, mine)

    def forward(x):
        return theirs(inputs_embeds=x).last_hidden_state

    assert_same(model, x, forward, pairs)
    for mine, other in queries:  # their gradients are in other units
        if other is not None:
            own = torch.autograd.grad(model.end(model.run_layers(model.begin(x.transpose(0, 1)))).sum(), mine.query)
            assert own[0].norm() > 1e-3


def test_sandwich_norms_are_those_of_lfm3(x):
    from transformers.models.lfm3 import modeling_lfm3 as published

    model = built({"type": "sandwich"})
    ours, pairs, layers = list(model.layers.values()), [], []
    for first, second in zip(ours[::2], ours[1::2], strict=True):
        layer = published.Lfm3DecoderLayer.__new__(published.Lfm3DecoderLayer)
        nn.Module.__init__(layer)
        layer.is_attention_layer = True
        layer.self_attn, layer.feed_forward = Ours(first.mixer, True), Ours(second.mixer, False)
        for mine, before, after in (
            (first, "operator_norm", "post_operator_norm"),
            (second, "ffn_norm", "post_ffn_norm"),
        ):
            for name, weight in ((before, mine.norm.weight), (after, mine.residual.norm.weight)):
                setattr(layer, name, published.Lfm3RMSNorm(WIDTH, eps=1e-6))
                pairs.append((weight, getattr(layer, name).weight))
        layers.append(layer)
    norm = published.Lfm3RMSNorm(WIDTH, eps=1e-6)
    pairs.append((model.final_norm.weight, norm.weight))
    for mine, theirs in pairs:
        copy(theirs, mine)

    def forward(x):
        for layer in layers:
            x = layer(x)
        return norm(x)

    assert_same(model, x, forward, pairs)
