"""Lightning attention against MiniMax's of transformers and retention against RetNet's equations, on equal weights; and
that a layer knows its depth wherever it is built."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad
from transformers import MiniMaxConfig
from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention, MiniMaxRMSNorm

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.config.schema import dispatch
from hybridtron.errors import UserError
from hybridtron.mad.models.layers import LAYERS
from hybridtron.mixers.lightning_attention.module import LightningAttention
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.stage import Stage

HEADS, SIZE, WIDTH, VOCAB, SEQ_LEN = 4, 6, 16, 32, 40
LIGHTNING = {"type": "lightning_attention", "num_heads": HEADS, "head_dim": SIZE, "norm_eps": 1e-6, "chunk_size": 16}
RETNET = LAYERS["retention"] | {"num_heads": HEADS, "key_dim": SIZE, "head_dim": 2 * SIZE, "chunk_size": 16}


def config_of(pattern, block=LIGHTNING):
    blocks = {
        "light": block,
        "mlp": {"type": "swiglu", "ffn_hidden_size": 24},
        "attn": {"type": "attention", "num_heads": 4},
        "both": {"type": "parallel", "branches": [block, {"type": "mamba1"}]},
    }
    return build(
        {"hidden_size": WIDTH, "vocab_size": VOCAB, "blocks": blocks, "pattern": pattern, "init_std": 0.3}, ModelConfig
    )


def built(config, stage=None):
    model = LanguageModel(config, TorchBackend(), stage)
    initialize(model, config, seed=0)
    return model


class TheirLayers(torch.nn.Module):
    """A stack of MiniMax's modules, each layer in transformers' numbering, around our residual stream."""

    def __init__(self, layers):
        super().__init__()
        config = MiniMaxConfig(
            hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=SIZE, block_size=8,
            num_hidden_layers=layers, vocab_size=VOCAB, layer_types=["linear_attention"] * layers,
        )  # fmt: skip
        self.mixers = torch.nn.ModuleList(MiniMaxLightningAttention(config, i) for i in range(layers))
        self.norms = torch.nn.ModuleList(MiniMaxRMSNorm(WIDTH, eps=1e-5) for _ in range(layers))
        self.final_norm = MiniMaxRMSNorm(WIDTH, eps=1e-5)
        self.embedding, self.head = torch.nn.Embedding(VOCAB, WIDTH), torch.nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            x = x + mixer(norm(x), None, None)[0]
        return self.head(self.final_norm(x))


def with_our_names(theirs, values):
    """`values` by parameter of theirs, as those of ours: our projection has all queries, then keys, values, gates."""
    ours = {}
    for i in range(len(theirs.mixers)):
        mixer, prefix = f"mixers.{i}.", f"layers.{i}."
        qkv = values[f"{mixer}qkv_proj.weight"].unflatten(0, (HEADS, 3, SIZE)).transpose(0, 1).flatten(0, 2)
        ours[f"{prefix}mixer.in_proj.weight"] = torch.cat([qkv, values[f"{mixer}output_gate.weight"]])
        ours[f"{prefix}mixer.norm_weight"] = values[f"{mixer}norm.weight"]
        ours[f"{prefix}mixer.out_proj.weight"] = values[f"{mixer}out_proj.weight"]
        ours[f"{prefix}norm.weight"] = values[f"norms.{i}.weight"]
    return ours | {name: values[name] for name in ("embedding.weight", "head.weight", "final_norm.weight")}


def test_is_the_lightning_attention_of_minimax():
    """Logits to 1e-4 and gradients to 1e-3 of their largest magnitude, with three layers of different depth."""
    torch.manual_seed(0)
    ours, theirs = built(config_of("3*light")), TheirLayers(3)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3).add_(parameter.dim() == 1)
    ours.load_state_dict(with_our_names(theirs, theirs.state_dict()))
    tokens, labels = torch.randint(VOCAB, (2, 2, SEQ_LEN))
    logits, expected = ours.logits(tokens), theirs(tokens)
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.detach().abs().max()))
    for each in (logits, expected):
        F.cross_entropy(each.flatten(0, 1), labels.flatten()).backward()
    gradients = with_our_names(theirs, {name: parameter.grad for name, parameter in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        bound = 1e-3 * float(gradients[name].abs().max())
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=0, atol=bound, msg=name)


def test_retention_is_that_of_retnet():
    """Equations 5 and 8 of the paper, in their parallel form in float64: rotations n theta, weights gamma^(n - m) and a
    norm of each head's outputs, before a swish gate."""
    torch.manual_seed(0)
    mixer = dispatch({"hidden_size": WIDTH, **RETNET}, MIXERS).build(TorchBackend())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, 0.3).add_(parameter.dim() == 1)
    x = torch.randn(SEQ_LEN, 2, WIDTH, requires_grad=True)
    y = mixer(x)
    wide = x.detach().double().requires_grad_()
    w = {name: parameter.detach().double().requires_grad_() for name, parameter in mixer.named_parameters()}
    sizes = [HEADS * SIZE] * 2 + [2 * HEADS * SIZE] * 2
    q, k, v, z = (
        part.unflatten(-1, (HEADS, -1)).transpose(0, 2)  # [heads, b, s, .]
        for part in (wide @ w["in_proj.weight"].T).split(sizes, -1)
    )
    theta = 10000 ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
    turn = torch.exp(1j * torch.arange(SEQ_LEN, dtype=torch.float64).unsqueeze(1) * theta)
    q, k = (torch.complex(*part.chunk(2, -1)) * turn for part in (q, k))
    gamma = (1 - 2.0 ** (-5 - torch.arange(HEADS, dtype=torch.float64))).view(-1, 1, 1, 1)
    lags = torch.arange(SEQ_LEN).unsqueeze(1) - torch.arange(SEQ_LEN)
    seen = torch.where(lags >= 0, gamma**lags, 0.0)
    heads = (seen * (q @ k.conj().transpose(-1, -2)).real) @ v
    heads = heads * torch.rsqrt(heads.square().mean(-1, keepdim=True) + 1e-5) * w["norm_weight"] * F.silu(z)
    expected = heads.transpose(0, 2).flatten(2) @ w["out_proj.weight"].T
    assert expected.abs().max() > 1
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-4 * float(expected.detach().abs().max()))
    theirs = torch.autograd.grad(expected.square().sum(), [wide, *w.values()])
    for one, other in zip(torch.autograd.grad(y.square().sum(), [x, *mixer.parameters()]), theirs, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=0, atol=1e-3 * float(other.abs().max()))


def depths(model):
    """The log decay of the first head of every layer of lightning attention, by the layer's name."""
    return {
        layer: module.config.log_decays()[0]
        for layer in model.layers
        for module in model.layers[layer].modules()
        if isinstance(module, LightningAttention)
    }


def test_a_layer_knows_its_depth_in_every_stage_and_slice():
    """Layers of sequences count, those of channels do not: as MiniMax's decoder layers, which have one of each."""
    config = config_of("light mlp attn mlp light mlp both mlp")
    slopes = [-(2**-2) * (1 - index / (3 + 1e-5) + 1e-5) for index in range(4)]
    expected = {"0": slopes[0], "4": slopes[2], "6": slopes[3]}
    assert depths(built(config)) == pytest.approx(expected, abs=1e-12)
    for start, stop in ((0, 3), (4, 5), (5, 8)):
        stage = built(config, Stage(1, 3, start, stop))
        assert depths(stage) == pytest.approx({i: expected[i] for i in expected if start <= int(i) < stop}, abs=1e-12)
    assert config.blocks["light"] == config_of("light").blocks["light"]  # what is written does not change
    assert config.model_dump() == build(config.model_dump(), ModelConfig).model_dump()


def test_the_same_weights_at_another_depth_give_other_outputs():
    first, second = (built(config_of(pattern)).layers for pattern in ("light mlp attn", "attn mlp light"))
    second["2"].load_state_dict(first["0"].state_dict())
    x = torch.randn(SEQ_LEN, 1, WIDTH)
    assert not torch.allclose(first["0"].mixer(x), second["2"].mixer(x), atol=1e-3)


@pytest.mark.parametrize("block", [LIGHTNING, RETNET])
def test_the_state_is_the_declared_one_and_does_not_grow(block):
    config = config_of("light mlp", block)
    model = built(config)
    _, state = model.prefill(torch.randint(VOCAB, (1, SEQ_LEN)), model.initial_state(1))
    assert state[0].numel() == config.blocks["light"].state_size(7) == config.blocks["light"].state_size(1 << 20)
    assert describe(config, 64).total == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"decay": "constant"}, r"decay_factor = null: expected a factor in \(0, 1\] with decay constant"),
        ({"decay_factor": 0.5}, "decay_factor = 0.5: expected nothing with decay lightning"),
        ({"rotary": True, "key_dim": 3}, "key_dim = 3: expected an even number with rotary"),
        ({"head_dim": None, "num_heads": 5}, r"num_heads = 5: expected a divisor of hidden_size 16"),
    ],
)
def test_settings_that_cannot_work_are_refused(keys, message):
    with pytest.raises(UserError, match=message):
        config_of("light", {**LIGHTNING, **keys})


def test_decays_are_the_published_ones():
    config = dispatch({"hidden_size": WIDTH, **RETNET}, MIXERS)
    assert [math.exp(each) for each in config.log_decays()] == pytest.approx([1 - 2.0 ** (-5 - h) for h in range(4)])


def test_the_decays_that_a_layer_keeps_outlive_inference_mode_and_transforms():
    tokens, model = torch.randint(VOCAB, (1, SEQ_LEN)), built(config_of("light mlp"))
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    gradients = grad(lambda weights: functional_call(model, weights, (tokens,)).square().mean())(weights)
    model.logits(tokens)
    copied = copy.deepcopy(model)  # a tensor of torch.func cannot be copied
    copied(tokens).square().mean().backward()
    torch.testing.assert_close({name: parameter.grad for name, parameter in copied.named_parameters()}, gradients)
    model = built(config_of("light mlp"))
    with torch.inference_mode():
        model(tokens)
    assert not model.layers["0"].mixer._decays.is_inference()  # which no function may keep for its gradients
