"""The short convolution gives what LFM2's and LFM3's do in transformers, and dynamic taps what Jet-Nemotron's do."""

import pytest
import torch
import torch.nn.functional as F
from transformers import Lfm2Config, Lfm3Config
from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv
from transformers.models.lfm3.modeling_lfm3 import Lfm3ShortConv

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.config.schema import dispatch
from hybridtron.errors import UserError
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

WIDTH, SEQ_LEN, BATCH = 24, 40, 2


def built(**keys):
    torch.manual_seed(0)
    mixer = dispatch({"type": "short_conv", "hidden_size": WIDTH, **keys}, MIXERS).build(TorchBackend())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5)
    return mixer, torch.randn(SEQ_LEN, BATCH, WIDTH, requires_grad=True)


def assert_same(mixer, x, function, wide, weights):
    """Hold outputs and gradients against a function of x [b, s, h] in float64 that has the same weights."""
    y, expected = mixer(x), function(wide.transpose(0, 1)).transpose(0, 1)
    assert expected.abs().max() > 0.05
    assert (y - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    cotangent = torch.randn_like(y)
    ours = torch.autograd.grad(y, [x, *mixer.parameters()], cotangent)
    theirs = torch.autograd.grad(expected, [wide, *weights], cotangent.double())
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other.view(one.shape)).norm() < 1e-3 * other.norm()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("layer", "config", "taps"), [(Lfm2ShortConv, Lfm2Config, 3), (Lfm3ShortConv, Lfm3Config, 7)])
def test_is_that_of_transformers(layer, config, taps, bias):
    mixer, x = built(conv_kernel=taps, bias=bias)
    theirs = layer(
        config(hidden_size=WIDTH, conv_L_cache=taps, conv_bias=bias, num_hidden_layers=1, layer_types=["conv"]), 0
    ).double()
    names = {name: name.replace("conv_", "conv.") for name, _ in mixer.named_parameters()}
    values = dict(mixer.named_parameters())
    theirs.load_state_dict({names[name]: p.view(theirs.get_parameter(names[name]).shape) for name, p in values.items()})
    wide = x.detach().double().requires_grad_()
    assert_same(mixer, x, theirs, wide, [theirs.get_parameter(name) for name in names.values()])


@pytest.mark.parametrize("taps", [1, 4])
def test_dynamic_taps_are_those_of_jet_nemotron(taps):
    """Whose taps are up(silu(down(input))) with a bias, the taps that all tokens share, over windows of inputs."""
    mixer, x = built(conv_kernel=taps, dynamic=True, tap_rank=5)
    w = {name: p.detach().double().requires_grad_() for name, p in mixer.named_parameters()}

    def published(u):
        before, after, v = (u @ w["in_proj.weight"].T).chunk(3, -1)
        generated = F.silu(u @ w["tap_down"].T) @ w["tap_up.weight"].T
        kernels = generated.unflatten(-1, (taps, WIDTH)).transpose(2, 3) + w["conv_weight"]  # [b, s, c, k]
        windows = F.pad(before * v, (0, 0, taps - 1, 0)).unfold(1, taps, 1)
        return (after * (windows * kernels).sum(-1)) @ w["out_proj.weight"].T

    assert_same(mixer, x, published, x.detach().double().requires_grad_(), list(w.values()))


def test_dynamic_taps_start_as_a_convolution_that_learns_to_be_dynamic():
    block = {"type": "short_conv", "conv_kernel": 4, "dynamic": True}
    config = ModelConfig.model_validate({"hidden_size": WIDTH, "vocab_size": 8, "blocks": {"x": block}, "pattern": "x"})
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, 0)
    mixer = model.layers["0"].mixer
    static, x = built(conv_kernel=4)
    static.load_state_dict({name: p for name, p in mixer.state_dict().items() if "tap" not in name})
    torch.testing.assert_close(mixer(x), static(x))
    mixer(x).square().sum().backward()
    assert mixer.tap_up.weight.grad.abs().max() > 0
    assert mixer.tap_down.shape == (3, WIDTH)


def test_a_rank_without_dynamic_taps_is_refused():
    block = {"type": "short_conv", "tap_rank": 4}
    with pytest.raises(UserError, match="tap_rank = 4: expected nothing without dynamic"):
        build({"hidden_size": WIDTH, "vocab_size": 8, "blocks": {"x": block}, "pattern": "x"}, ModelConfig)
