"""Every layer named like one of mad-lab's, in the form of the preset `madlab`, against its formula in float64.

The differences that remain are those of the table in docs/mad.md.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hybridtron.backends.torch import TorchBackend
from hybridtron.mad.models.architecture import from_layers
from hybridtron.mad.models.layers import block_name
from tests.mixers.test_published_layers import explicit, implicit_filters, short, tied_streams, toeplitz

SEQ_LEN, BATCH = 40, 2


def attention(x, w, config):
    """A window of 33 is mad-lab's (32, 32): the token itself and 32 before it."""
    q, k, v = (
        t.unflatten(-1, (config.num_heads, -1)) for t in F.linear(x, w["qkv.weight"], w["qkv.bias"]).chunk(3, -1)
    )
    half = q.shape[-1] // 2
    angles = torch.outer(torch.arange(SEQ_LEN).double(), 10000.0 ** -(torch.arange(half).double() / half))
    turn = torch.polar(torch.ones(()).double(), angles).unsqueeze(1)
    q, k = (torch.complex(t[..., :half], t[..., half:]) * turn for t in (q, k))
    scores = torch.einsum("bihd,bjhd->bhij", q, k.conj()).real / (2 * half) ** 0.5
    lags = torch.arange(SEQ_LEN).unsqueeze(1) - torch.arange(SEQ_LEN)
    hidden = (lags < 0) | (lags >= (config.window or SEQ_LEN))
    y = torch.einsum("bhij,bjhd->bihd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)
    return F.linear(y.flatten(2), w["proj.weight"], w["proj.bias"])


def linear_attention(x, w, config):
    heads, size = config.num_heads, config.key_size
    q, k, v = (t.unflatten(-1, (heads, -1)) for t in (x @ w["qkv.weight"].T).chunk(3, -1))
    maps = list(zip(w["feature_weight"].split(size), w["feature_bias"].split(size), strict=True))
    q, k = (F.linear(t, *one) * F.linear(t, *other) for t, one, other in ((q, *maps[:2]), (k, *maps[2:])))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-12)
    return torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2) @ w["proj.weight"].T


def gated_linear_attention(x, w, config):
    heads = config.num_heads
    q, k, v, z = (t.unflatten(-1, (heads, -1)) for t in (x @ w["in_proj.weight"].T).chunk(4, -1))
    decay = F.linear(x @ w["gate_down"].T, w["gate_up.weight"], w["gate_up.bias"])
    decay = torch.sigmoid(decay).pow(1 / 16).unflatten(-1, (heads, -1))
    state, outputs = 0, []
    for t in range(SEQ_LEN):
        state = decay[:, t].unsqueeze(-1) * state + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhi,bhij->bhj", q[:, t] * q.shape[-1] ** -0.5, state))
    y = torch.stack(outputs, 1)
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * w["norm_weight"] * F.silu(z)
    return y.flatten(2) @ w["out_proj.weight"].T


def hyena(x, w, config):
    gate, first, second = tied_streams(w, x.transpose(0, 1), 4)
    u = first * second
    y = gate * (explicit(u, implicit_filters(w, SEQ_LEN, SEQ_LEN)) + u * w["skip"])
    return F.linear(y, w["out_proj.weight"], w["out_proj.bias"])


def multi_head_hyena(x, w, config):
    """8 heads of 16 channels, as mad-lab's code has them."""
    q, v, k = (t.unflatten(-1, (8, 16)) for t in tied_streams(w, x.transpose(0, 1), 4))
    states = torch.einsum("bjmc,bjmd->bjmcd", k, v)
    convolved = torch.einsum("mij,bjmcd->bimcd", toeplitz(implicit_filters(w, SEQ_LEN, SEQ_LEN), SEQ_LEN), states)
    y = torch.einsum("bimc,bimcd->bimd", q, convolved + states * w["skip"][:, None, None]).flatten(2)
    return F.linear(y, w["out_proj.weight"], w["out_proj.bias"])


def soft_routing(x, w):
    scores = F.linear(x, w["router_weight"], w["router_bias"])
    second = scores.sort(-1).values[..., -2:-1]
    return (scores * (scores >= second)).softmax(-1)


def hyena_experts(x, w, config):
    gate, first, second = tied_streams(w, x.transpose(0, 1), 1)
    u = first * second
    y = gate * (explicit(u, implicit_filters(w, SEQ_LEN, SEQ_LEN, 8)) + u * w["skip"])
    y = (y.unflatten(-1, (8, 16)) * soft_routing(x, w).unsqueeze(-1)).sum(-2)
    return F.linear(y, w["out_proj.weight"], w["out_proj.bias"])


def mamba(x, w, config):
    u, z = (x @ w["in_proj.weight"].T).chunk(2, -1)
    u = F.silu(short(u, w["conv_weight"], w["conv_bias"]))
    step, b, c = (u @ w["x_proj.weight"].T).split([8, 4, 4], -1)
    step = F.softplus(F.linear(step, w["dt_weight"], w["dt_bias"])).unsqueeze(-1)  # [b, s, inner, 1]
    state, outputs = 0, []
    for t in range(SEQ_LEN):
        state = torch.exp(-step[:, t] * w["A_log"].exp()) * state + step[:, t] * b[:, t, None] * u[:, t, :, None]
        outputs.append((state * c[:, t, None]).sum(-1))
    return ((torch.stack(outputs, 1) + w["D"] * u) * F.silu(z)) @ w["out_proj.weight"].T


def rwkv6_time_mixing(x, w, config):
    change = F.pad(x, (0, 0, 1, 0))[:, :-1] - x
    lora = torch.tanh((x + change * w["mix_base"]) @ w["mix_down"].T).chunk(5, -1)
    names = ("decay", "key", "value", "receptance", "gate")
    mixed = {
        name: x + change * (w[f"mix_{name}"] + part @ up)
        for name, part, up in zip(names, lora, w["mix_up"], strict=True)
    }
    r, k, v = ((mixed[name] @ w[f"{name}_weight"].T).unflatten(-1, (8, 16)) for name in ("receptance", "key", "value"))
    decay = torch.tanh(mixed["decay"] @ w["decay_down"].T) @ w["decay_weight"].T + w["decay_base"]
    decay, bonus = torch.exp(-torch.exp(decay)).unflatten(-1, (8, 16)), w["bonus"].view(8, 16)
    state, outputs = torch.zeros(BATCH, 8, 16, 16, dtype=torch.float64), []
    for t in range(SEQ_LEN):
        pair = k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        outputs.append(torch.einsum("bhi,bhij->bhj", r[:, t], state + bonus.unsqueeze(-1) * pair))
        state = decay[:, t].unsqueeze(-1) * state + pair
    y = torch.stack(outputs, 1).flatten(0, 1).flatten(1)
    y = F.group_norm(y, 8, w["norm_weight"], w["norm_bias"], eps=64e-5).view_as(x)
    return (y * F.silu(mixed["gate"] @ w["gate_weight"].T)) @ w["out_proj.weight"].T


def rwkv6_channel_mixing(x, w, config):
    change = F.pad(x, (0, 0, 1, 0))[:, :-1] - x
    value = F.relu((x + change * w["mix_key"]) @ w["key_weight"].T).square() @ w["value.weight"].T
    return torch.sigmoid((x + change * w["mix_receptance"]) @ w["receptance_weight"].T) * value


def mlp(x, w, config):
    return F.gelu(x @ w["up.weight"].T, approximate="tanh") @ w["down.weight"].T


def swiglu(x, w, config):
    gate, up = (x @ w["gate_up.weight"].T).chunk(2, -1)
    return (F.silu(gate) * up) @ w["down.weight"].T


def moe_mlp(x, w, config):
    """One projection down mixes the inner channels of all experts; outputs are kept as [width, experts]."""
    value, gate = (x @ w["up"].T).chunk(2, -1)
    outputs = ((value * F.gelu(gate, approximate="tanh")) @ w["down"].T).unflatten(-1, (128, 8))
    return (outputs * soft_routing(x, w).unsqueeze(-2)).sum(-1)


FORMULAS = {
    "attention": attention,
    "mh-attention": attention,
    "sliding-attention": attention,
    "mh-sliding-attention": attention,
    "linear-attention": linear_attention,
    "mh-linear-attention": linear_attention,
    "gated-linear-attention": gated_linear_attention,
    "mh-gated-linear-attention": gated_linear_attention,
    "hyena": hyena,
    "mh-hyena": multi_head_hyena,
    "hyena-experts": hyena_experts,
    "mamba": mamba,
    "rwkv6-time-mixer": rwkv6_time_mixing,
    "rwkv6-channel-mixer": rwkv6_channel_mixing,
    "mlp": mlp,
    "swiglu": swiglu,
    "moe-mlp": moe_mlp,
}


@pytest.mark.parametrize("layer", FORMULAS)
def test_a_layer_of_mad_lab_is_its_formula(layer):
    config = from_layers([layer], match_mad_lab=True).model(vocab_size=16, seq_len=SEQ_LEN).blocks[block_name(layer)]
    mixer = config.build(TorchBackend())
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            parameter.normal_(0, parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5)
            if name in ("decay_base", "feature_bias"):  # slow decays, and sums of weights away from 0
                parameter.add_(-2 if name == "decay_base" else 2)
    weights = {name: parameter.detach().double() for name, parameter in mixer.named_parameters()}
    x = torch.randn(SEQ_LEN, BATCH, 128)
    with torch.no_grad():
        y = mixer(x).double().transpose(0, 1)
    expected = FORMULAS[layer](x.double().transpose(0, 1), weights, config)
    assert expected.abs().max() > 0.02
    assert (y - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
