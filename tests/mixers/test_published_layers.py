"""Convolutional, RWKV and linear-attention layers give what their published definitions give on equal weights.

Where Hugging Face transformers has a layer it is the other side. Else the definition is written out here in float64:
long convolutions as explicit sums over all earlier tokens, filters and recurrences token by token.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import RwkvFeedForward

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.schema import dispatch
from hybridtron.mixers.registry import MIXERS

SEQ_LEN, BATCH = 40, 2


def built(width, **block):
    """A mixer with large random weights, what it is given [s, b, h], and its weights in float64."""
    torch.manual_seed(0)
    config = dispatch({"hidden_size": width, **block}, MIXERS)
    mixer = config.build(TorchBackend())
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 4
            parameter.normal_(0, fan_in**-0.5)
            if name in ("log_rate", "decay_base"):
                parameter.sub_(2)
    weights = {name: parameter.detach().double() for name, parameter in mixer.named_parameters()}
    return mixer, torch.randn(SEQ_LEN, BATCH, width), weights


def assert_same(mixer, x, expected):
    """expected [b, s, h]."""
    with torch.no_grad():
        y = mixer(x).double().transpose(0, 1)
    assert expected.abs().max() > 0.05
    assert (y - expected).abs().max() < 1e-4 * max(1, expected.abs().max())


def short(u, weight, bias=None):
    """Depthwise causal convolution of u [b, s, c] by PyTorch's."""
    taps = weight.shape[1]
    padded = F.conv1d(u.transpose(1, 2), weight.unsqueeze(1), bias, padding=taps - 1, groups=len(weight))
    return padded[..., : u.shape[1]].transpose(1, 2)


def toeplitz(h, seq_len):
    """[c, k] -> [c, s, s]."""
    h = F.pad(h, (0, max(0, seq_len - h.shape[1])))
    lags = torch.arange(seq_len).unsqueeze(1) - torch.arange(seq_len)
    return torch.where(lags >= 0, h[:, lags.clamp_min(0)], 0.0)


def explicit(u, h):
    """Causal convolution of u [b, s, c] with filters [c, k]."""
    return torch.einsum("cij,bjc->bic", toeplitz(h, u.shape[1]), u)


def implicit_filters(w, length, filter_length, experts=1):
    """The Hyena filter: sine network of the position, times a window per filter; [filters, length].

    The authors' code keeps the channels of experts as [channels, experts]: rates are dealt to the experts in turn.
    """
    t = torch.linspace(0, 1, filter_length, dtype=torch.float64)[:length]
    angle = 2 * math.pi * torch.arange(length, dtype=torch.float64) / filter_length
    z = torch.stack([t, (1e-4 * angle).cos(), -(1e-4 * angle).sin()], 1)
    z = torch.sin(w["filter.frequency"] * (z @ w["filter.input_weight"].T + w["filter.input_bias"]))
    for weight, bias in zip(w["filter.inner_weight"], w["filter.inner_bias"], strict=True):
        z = torch.sin(w["filter.frequency"] * (z @ weight.T + bias))
    h = z @ w["filter.output_weight"].T
    deltas = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, h.shape[1], dtype=torch.float64)
    deltas = torch.stack([deltas[expert::experts] for expert in range(experts)]).flatten()
    return (h * torch.exp(-t.unsqueeze(1) * deltas.abs())).T


def tied_streams(w, x, groups):
    """Projections repeated `groups` times over, convolved, and cut into three."""
    u = x.transpose(0, 1).double() @ w["in_proj.weight"].T + w["in_proj.bias"]
    return short(u.repeat(1, 1, groups), w["conv_weight"], w["conv_bias"]).chunk(3, -1)


@pytest.mark.parametrize(("expand", "groups"), [(1, 1), (4, 4), (2, 1)])
def test_hyena(expand, groups):
    block = {"expand": expand, "projection_groups": groups, "filter_order": 4, "filter_length": 50, "bias": True}
    mixer, x, w = built(12, type="hyena", **block)
    x0, x1, v = tied_streams(w, x, groups)
    u = v * x1
    y = x0 * (explicit(u, implicit_filters(w, SEQ_LEN, 50)) + u * w["skip"])
    assert_same(mixer, x, y @ w["out_proj.weight"].T + w["out_proj.bias"])


@pytest.mark.parametrize("groups", [1, 4])
def test_multi_head_hyena(groups):
    block = {"num_heads": 4, "projection_groups": groups, "filter_order": 2, "filter_length": 50, "bias": True}
    mixer, x, w = built(24, type="mh_hyena", **block)
    q, v, k = (t.unflatten(-1, (4, 6)) for t in tied_streams(w, x, groups))
    states = torch.einsum("bjmc,bjmd->bjmcd", k, v)
    filters = implicit_filters(w, SEQ_LEN, 50)
    convolved = torch.einsum("mij,bjmcd->bimcd", toeplitz(filters, SEQ_LEN), states)
    out = convolved + states * w["skip"][:, None, None]
    y = torch.einsum("bimc,bimcd->bimd", q, out).flatten(2)
    assert_same(mixer, x, y @ w["out_proj.weight"].T + w["out_proj.bias"])


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_hyena_experts(top_k):
    block = {"num_experts": 4, "expert_size": 3, "top_k": top_k, "filter_order": 4, "filter_length": 50, "bias": True}
    mixer, x, w = built(24, type="hyena_experts", **block)
    x0, x1, v = tied_streams(w, x, 1)
    u = v * x1
    y = x0 * (explicit(u, implicit_filters(w, SEQ_LEN, 50, 4)) + u * w["skip"])
    scores = x.transpose(0, 1).double() @ w["router_weight"].T + w["router_bias"]
    weakest = scores.topk(top_k, -1).values[..., -1:]
    weights = scores.masked_fill(scores < weakest, -torch.inf).softmax(-1)  # none for those not chosen
    assert (weights > 0).sum(-1).eq(top_k).all()
    y = (y.unflatten(-1, (4, 3)) * weights.unsqueeze(-1)).sum(-2)
    assert_same(mixer, x, y @ w["out_proj.weight"].T + w["out_proj.bias"])


FILTERS = {
    "hyena_se": lambda w: w["filter_weight"],
    "hyena_mr": lambda w: (
        w["filter_weight"]
        * torch.exp(
            -torch.logspace(-2, 2, len(w["filter_weight"]), dtype=torch.float64)[:, None]
            * torch.linspace(0, 1, w["filter_weight"].shape[1], dtype=torch.float64)
        )
    ),
    "hyena_li": lambda w: sum(
        w["residues"][:, [i]] * torch.exp(-w["log_rate"][:, [i]].exp() * torch.arange(SEQ_LEN))
        for i in range(w["residues"].shape[1])
    ),
}


@pytest.mark.parametrize(
    "block",
    [
        {"type": "hyena_se", "num_groups": 6},
        {"type": "hyena_mr", "num_groups": 6, "filter_length": 25},
        {"type": "hyena_mr", "num_groups": 3, "filter_length": 128},
        {"type": "hyena_li", "num_groups": 6, "filter_order": 4},
        {"type": "hyena_li", "filter_order": 16},
    ],
)
def test_striped_hyena(block):
    mixer, x, w = built(24, **block)
    q, k, v = short(x.transpose(0, 1).double() @ w["in_proj.weight"].T, w["conv_weight"]).chunk(3, -1)
    h = FILTERS[block["type"]](w)
    y = explicit(k * v, h.repeat_interleave(24 // len(h), 0)[:, :SEQ_LEN])
    y = q * (y + k * v * w["skip"] if "skip" in w else y)
    assert_same(mixer, x, y @ w["out_proj.weight"].T)


def test_rwkv6_time_mixing():
    """Equations 11 to 20 of the paper."""
    mixer, x, w = built(24, type="rwkv6", head_dim=8, mix_rank=3, decay_rank=5, chunk_size=8)
    now = x.double()  # [s, b, h]
    change = torch.cat([torch.zeros_like(now[:1]), now[:-1]]) - now
    lora = torch.tanh((now + change * w["mix_base"]) @ w["mix_down"].T).chunk(5, -1)
    mixed = {
        name: now + change * (w[f"mix_{name}"] + part @ up)
        for name, part, up in zip(("decay", "key", "value", "receptance", "gate"), lora, w["mix_up"], strict=True)
    }
    r, k, v = (
        (mixed[name] @ w[f"{name}_weight"].T).unflatten(-1, (3, 8)) for name in ("receptance", "key", "value")
    )  # [s, b, heads, d]
    decay = torch.tanh(mixed["decay"] @ w["decay_down"].T) @ w["decay_weight"].T + w["decay_base"]
    decay, bonus = torch.exp(-torch.exp(decay)).unflatten(-1, (3, 8)), w["bonus"].view(3, 8)
    state, outputs = torch.zeros(BATCH, 3, 8, 8, dtype=torch.float64), []
    for t in range(SEQ_LEN):
        pair = torch.einsum("bhi,bhj->bhij", k[t], v[t])
        outputs.append(torch.einsum("bhi,bhij->bhj", r[t], state + bonus.unsqueeze(-1) * pair))
        state = decay[t].unsqueeze(-1) * state + pair
    y = torch.stack(outputs).flatten(2)  # [s, b, h]
    y = F.group_norm(y.flatten(0, 1), 3, w["norm_weight"], w["norm_bias"], eps=64e-5).view_as(now)
    y = y * F.silu(mixed["gate"] @ w["gate_weight"].T)
    assert_same(mixer, x, (y @ w["out_proj.weight"].T).transpose(0, 1))


def test_rwkv_channel_mixing_is_that_of_transformers():
    """Which has RWKV-4's: the same function, with the share of the token itself where version 6 has the other's."""
    mixer, x, w = built(24, type="rwkv6_channel", ffn_hidden_size=40)
    theirs = RwkvFeedForward(RwkvConfig(hidden_size=24, intermediate_size=40, attention_hidden_size=24)).double()
    theirs.load_state_dict(
        {
            "time_mix_key": 1 - w["mix_key"].view(1, 1, -1),
            "time_mix_receptance": 1 - w["mix_receptance"].view(1, 1, -1),
            "key.weight": w["key_weight"],
            "receptance.weight": w["receptance_weight"],
            "value.weight": w["value.weight"],
        }
    )
    with torch.no_grad():
        assert_same(mixer, x, theirs(x.transpose(0, 1).double())[0])


def heads_of(x, weight, *sizes):
    """x [s, b, h] projected, one [b, s, heads, size] for every (heads, size)."""
    parts = (x.transpose(0, 1).double() @ weight.T).split([heads * size for heads, size in sizes], -1)
    return [part.unflatten(-1, size) for part, size in zip(parts, sizes, strict=True)]


def elu_plus_one(x):
    return torch.where(x > 0, x + 1, x.exp())


KERNELS = {
    "elu": lambda q, k, w: torch.einsum("bihc,bjhc->bhij", elu_plus_one(q), elu_plus_one(k)),
    "relu": lambda q, k, w: torch.einsum("bihc,bjhc->bhij", q.clamp_min(0), k.clamp_min(0)),
    "identity": lambda q, k, w: torch.einsum("bihc,bjhc->bhij", q, k),
    "taylor": lambda q, k, w: ((torch.einsum("bihc,bjhc->bhij", q, k) / q.shape[-1] ** 0.5 + 1) ** 2 + 1) / 2,
    "hadamard": lambda q, k, w: torch.einsum(
        "bihc,bjhc->bhij",
        *(
            torch.einsum("bshi,hoi->bsho", x, w[first]) * torch.einsum("bshi,hoi->bsho", x, w[first + 1])
            for x, first in ((q, 0), (k, 2))
        ),
    ),
}


@pytest.mark.parametrize(
    ("feature_map", "normalize"),
    [*((name, False) for name in KERNELS), ("elu", True), ("relu", True), ("taylor", True)],
)
def test_linear_attention(feature_map, normalize):
    """Equation 7 of the paper with every pair of tokens written out, and the feature maps by their kernels."""
    block = {"num_heads": 3, "key_dim": 4, "feature_map": feature_map, "normalize": normalize, "chunk_size": 16}
    mixer, x, w = built(24, type="linear_attention", **block)
    q, k, v = heads_of(x, w["qkv.weight"], (3, 4), (3, 4), (3, 8))
    maps = w["feature_weight"].unflatten(0, (4, 3, 4)) if feature_map == "hadamard" else None
    weights = KERNELS[feature_map](q, k, maps).tril()
    if normalize:
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
    y = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    assert_same(mixer, x, y @ w["proj.weight"].T)


def test_linear_attention_with_one_feature_map_for_all_heads():
    """As mad-lab's: two linear maps with biases for queries and two for keys, and 1e-12 beside the sum of weights."""
    block = {"num_heads": 3, "key_dim": 4, "feature_map": "hadamard", "shared_feature_map": True, "normalize": True}
    mixer, x, w = built(24, type="linear_attention", eps=1e-12, chunk_size=16, **block)
    assert w["feature_weight"].numel() + w["feature_bias"].numel() == 4 * (4 * 4 + 4)
    with torch.no_grad():
        mixer.feature_bias.add_(2)  # sums of weights away from 0
    q, k, v = heads_of(x, w["qkv.weight"], (3, 4), (3, 4), (3, 8))
    maps = list(zip(w["feature_weight"].split(4), (w["feature_bias"] + 2).split(4), strict=True))
    q, k = (F.linear(x, *one) * F.linear(x, *other) for x, one, other in ((q, *maps[:2]), (k, *maps[2:])))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).tril()
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-12)
    y = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
    assert_same(mixer, x, y @ w["proj.weight"].T)


@pytest.mark.parametrize("chunk_size", [16, 64])
def test_gated_linear_attention(chunk_size):
    """Section 4.1 and appendix of Yang et al. 2023 (arXiv 2312.06635): a query sees an earlier key through the
    product of the decays between them, channel by channel."""
    mixer, x, w = built(24, type="gla", num_heads=3, gate_rank=5, chunk_size=chunk_size)
    q, k, v, z = heads_of(x, w["in_proj.weight"], (3, 4), (3, 4), (3, 8), (3, 8))
    decay = x.transpose(0, 1).double() @ w["gate_down"].T @ w["gate_up.weight"].T + w["gate_up.bias"]
    decay = torch.sigmoid(decay).pow(1 / 16).unflatten(-1, (3, 4))  # [b, s, heads, n]
    y = torch.zeros_like(v)
    for i in range(SEQ_LEN):
        for j in range(i + 1):
            seen = (q[:, i] * decay[:, j + 1 : i + 1].prod(1) * k[:, j]).sum(-1, keepdim=True) / 2  # root of n = 4
            y[:, i] += seen * v[:, j]
    y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-5) * w["norm_weight"] * F.silu(z)
    assert_same(mixer, x, y.flatten(2) @ w["out_proj.weight"].T)
