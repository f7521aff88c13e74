"""Attention and SwiGLU against a model in plain PyTorch, written as mad-lab writes it, that shares only the weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.models.proxy_model import ProxyModel, initial_values
from hybridtron.mad.tasks.generate import generate
from hybridtron.mad.training.stack import Stack


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def turned(x: Tensor) -> Tensor:
    """Rotary positions, base 10000, as complex numbers of channels i and i + d / 2: [b, h, s, d]."""
    half = x.shape[-1] // 2
    angles = torch.outer(torch.arange(x.shape[-2]).double(), 10000.0 ** -(torch.arange(half).double() / half))
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones(()).double(), angles)
    return torch.cat([pairs.real, pairs.imag], -1).to(x.dtype)


def attention(x: Tensor, weights: dict[str, Tensor], heads: int) -> Tensor:
    qkv = F.linear(x, weights["qkv.weight"], weights["qkv.bias"])
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
    y = F.scaled_dot_product_attention(turned(q), turned(k), v, is_causal=True)
    return F.linear(y.transpose(1, 2).flatten(2), weights["proj.weight"], weights["proj.bias"])


def swiglu(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
    gate, up = F.linear(x, weights["gate_up.weight"]).chunk(2, -1)
    return F.linear(F.silu(gate) * up, weights["down.weight"])


def plain_logits(tokens: Tensor, weights: dict[str, Tensor], layers: int, heads: int) -> Tensor:
    x = F.embedding(tokens, weights["embedding.weight"])
    for i in range(layers):
        start = f"layers.{i}.mixer."
        own = {name.removeprefix(start): value for name, value in weights.items() if name.startswith(start)}
        inner = rms_norm(x, weights[f"layers.{i}.norm.weight"])
        x = x + (swiglu(inner, own) if i % 2 else attention(inner, own, heads))
    return F.linear(rms_norm(x, weights["final_norm.weight"]), weights["head.weight"], weights["head.bias"])


@pytest.mark.parametrize(("layer", "heads"), [("attention", 1), ("mh-attention", 16)])
def test_attention_and_swiglu_train_as_in_plain_pytorch(layer, heads):
    config = from_layers([layer, "swiglu"] * 2).model(vocab_size=16, seq_len=127)
    values = initial_values(config, autoencoder=False, seed=0)
    stack = Stack(config, False, [values], one_pass=False)
    plain = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(value) for name, value in values.items()})
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    tokens, targets = map(torch.from_numpy, generate("in-context-recall", {}, "train", seed=0, num_examples=12))
    losses = []
    for some, wanted in zip(tokens.split(4), targets.split(4), strict=True):
        loss, gradients = stack.gradients(some, wanted)
        stack.flat -= 0.05 * gradients
        weights = {name.replace("/", "."): value for name, value in plain.items()}
        expected = F.cross_entropy(plain_logits(some, weights, 4, heads).flatten(0, 1), wanted.flatten())
        optimizer.zero_grad()
        expected.backward()
        optimizer.step()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    for name, value in stack.parameters(0).items():
        assert torch.allclose(value, plain[name.replace(".", "/")], atol=1e-5), name


@pytest.mark.parametrize(
    ("layers", "first"),
    [
        (["attention", "swiglu"], 1),
        (["hyena", "mlp", "swiglu"], 1),
        (["swiglu", "attention"], 2),
        (["attention", "moe-mlp"], 2),  # which experts have room depends on all tokens
        (["mlp"], 0),
    ],
)
def test_logits_of_some_places_are_those_of_the_whole(layers, first):
    config = from_layers(layers).model(vocab_size=16, seq_len=10)
    model = ProxyModel(config, autoencoder=False)
    model.load_state_dict(initial_values(config, autoencoder=False, seed=0))
    assert model.first_token_wise == first
    tokens, places = torch.randint(16, (3, 10)), torch.tensor([0, 7, 8, 29])
    whole = model(tokens).transpose(0, 1).flatten(0, 1)  # [s * b, vocabulary]
    torch.testing.assert_close(model(tokens, places), whole[places], atol=1e-6, rtol=1e-5)
