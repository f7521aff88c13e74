"""Mixers of the gated delta rule give outputs and gradients of their published definitions on equal weights.

Where Hugging Face transformers has a layer it is the other side. Else the equations are written out here in float64,
token by token.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from transformers import BailingHybridConfig, KimiLinearConfig, OlmoHybridConfig, Qwen3NextConfig
from transformers.models.bailing_hybrid.modeling_bailing_hybrid import BailingHybridDeltaAttention
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from tests.mixers.test_published_layers import built, short

WIDTH, HEADS, SIZE = 24, 3, 6  # tokens are more than a chunk
EPS = 1e-5


def assert_same(published, **block):
    """Compare the layer with published(x [b, s, h], its weights) -> [b, s, h]: outputs and gradients of everything."""
    mixer, x, weights = built(WIDTH, norm_eps=EPS, chunk_size=16, **block)
    dtype = x.dtype if published in TRANSFORMERS else torch.float64
    theirs = {name: weight.to(dtype).requires_grad_() for name, weight in weights.items()}
    inputs = x.to(dtype).transpose(0, 1).detach().requires_grad_()
    expected = published(inputs, theirs)
    y = mixer(x.requires_grad_()).transpose(0, 1)
    largest = max(1.0, float(expected.detach().abs().max()))
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    slopes = torch.autograd.grad((expected * direction).sum(), [inputs, *theirs.values()])
    gradients = torch.autograd.grad((y * direction).sum(), [x, *mixer.parameters()])
    assert expected.abs().max() > 0.05
    assert (y - expected).abs().max() < 1e-4 * largest
    names = ["x", *(name for name, _ in mixer.named_parameters())]
    assert names[1:] == list(theirs)
    for name, one, other in zip(names, gradients, (slopes[0].transpose(0, 1), *slopes[1:]), strict=True):
        assert other.abs().max() > 0, name
        assert (one - other).norm() < 1e-3 * other.norm(), name


def kimi_linear(x, w):
    config = KimiLinearConfig(
        hidden_size=WIDTH, linear_head_dim=SIZE, linear_num_heads=HEADS, rms_norm_eps=EPS, num_hidden_layers=1,
        layer_types=["linear_attention"],
    )  # fmt: skip
    q, k, v, beta = w["in_proj.weight"].split([*3 * (HEADS * SIZE,), HEADS])
    state = {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "b_proj.weight": beta,
        "conv1d.weight": w["conv_weight"].unsqueeze(1),
        "forget_gate.f_a_proj.weight": w["decay_down"],
        "forget_gate.f_b_proj.weight": w["decay_up.weight"],
        "forget_gate.dt_bias": w["dt_bias"],
        "forget_gate.A_log": w["A_log"].view(1, 1, -1, 1),
        "g_a_proj.weight": w["gate_down"],
        "g_b_proj.weight": w["gate_up.weight"],
        "o_norm.weight": w["norm_weight"],
        "o_proj.weight": w["out_proj.weight"],
    }
    return functional_call(KimiLinearDeltaAttention(config, 0), state, (x,), strict=True)


def bailing_hybrid(x, w):
    """Ling 3, with the safe gate whose lower bound is -5."""
    config = BailingHybridConfig(
        hidden_size=WIDTH, head_dim=SIZE, num_attention_heads=HEADS, rms_norm_eps=EPS, num_hidden_layers=1
    )
    q, k, v, beta, decay, gate = w["in_proj.weight"].split([*3 * (HEADS * SIZE,), HEADS, *2 * (HEADS * SIZE,)])
    state = {
        "q_proj.weight": q,
        "k_proj.weight": k,
        "v_proj.weight": v,
        "b_proj.weight": beta,
        "conv1d.weight": w["conv_weight"].unsqueeze(1),
        "forget_gate.f_proj.weight": decay,
        "forget_gate.dt_bias": w["dt_bias"],
        "forget_gate.A_log": w["A_log"],
        "g_proj.weight": gate,
        "o_norm.weight": w["norm_weight"],
        "o_proj.weight": w["out_proj.weight"],
    }
    return functional_call(BailingHybridDeltaAttention(config, 0), state, (x,), strict=True)


def olmo_hybrid(x, w):
    """With negative eigenvalues."""
    config = OlmoHybridConfig(
        hidden_size=WIDTH, linear_num_key_heads=HEADS, linear_num_value_heads=HEADS, linear_key_head_dim=SIZE,
        linear_value_head_dim=2 * SIZE, linear_allow_neg_eigval=True, num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
    )  # fmt: skip
    sizes = {"q": SIZE, "k": SIZE, "v": 2 * SIZE, "g": 2 * SIZE, "b": 1, "a": 1}
    projections = zip(sizes, w["in_proj.weight"].split([HEADS * size for size in sizes.values()]), strict=True)
    state = {
        **{f"{name}_proj.weight": weight for name, weight in projections},
        "conv1d.weight": w["conv_weight"].unsqueeze(1),
        "dt_bias": w["dt_bias"],
        "A_log": w["A_log"],
        "o_norm.weight": w["norm_weight"],
        "o_proj.weight": w["out_proj.weight"],
    }
    return functional_call(OlmoHybridGatedDeltaNet(config, 0), state, (x,), strict=True)


def qwen3_next(x, w):
    """With two value heads a query head, whose projections are interleaved by query head there."""
    config = Qwen3NextConfig(
        hidden_size=WIDTH, linear_num_key_heads=HEADS, linear_num_value_heads=2 * HEADS, linear_key_head_dim=SIZE,
        linear_value_head_dim=SIZE, rms_norm_eps=EPS, num_hidden_layers=1, layer_types=["linear_attention"],
    )  # fmt: skip
    *qkvz, beta, dt = (
        part.unflatten(0, (HEADS, -1))
        for part in w["in_proj.weight"].split([HEADS * size for size in (SIZE, SIZE, 2 * SIZE, 2 * SIZE, 2, 2)])
    )
    state = {
        "in_proj_qkvz.weight": torch.cat(qkvz, 1).flatten(0, 1),
        "in_proj_ba.weight": torch.cat([beta, dt], 1).flatten(0, 1),
        "conv1d.weight": w["conv_weight"].unsqueeze(1),
        "dt_bias": w["dt_bias"],
        "A_log": w["A_log"],
        "norm.weight": w["norm_weight"],
        "out_proj.weight": w["out_proj.weight"],
    }
    return functional_call(Qwen3NextGatedDeltaNet(config, 0), state, (x,), strict=True)


def projected(x, w, *sizes):
    """The projection of x [b, s, h] in parts of HEADS heads, one [b, s, heads, size] for every size; then the first
    three parts convolved, as (convolved, others)."""
    parts = (x @ w["in_proj.weight"].T).split([HEADS * size for size in sizes], -1)
    convolved = F.silu(short(torch.cat(parts[:3], -1), w["conv_weight"])).split(
        [HEADS * size for size in sizes[:3]], -1
    )
    return [[part.unflatten(-1, (HEADS, -1)) for part in each] for each in (convolved, parts[3:])]


def unit(x):
    return x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt()


def normed(y, w):
    return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + EPS) * w["norm_weight"]


def step_decays(dt, w):
    """[b, s, heads]"""
    return torch.exp(-w["A_log"].exp() * F.softplus(dt.squeeze(-1) + w["dt_bias"]))


def gdn2(x, w):
    """Equation 7 of arXiv 2605.22791, with an erase gate up to two and a decay by channel from a low rank."""
    (q, k, v), (erase, write) = projected(x, w, SIZE, SIZE, 2 * SIZE, SIZE, 2 * SIZE)
    q, k = unit(q) * SIZE**-0.5, unit(k)
    decay = (x @ w["decay_down"].T @ w["decay_up.weight"].T + w["dt_bias"]).unflatten(-1, (HEADS, SIZE))
    decay = torch.exp(-w["A_log"].exp().unsqueeze(-1) * F.softplus(decay))
    erased, written = 2 * erase.sigmoid() * k, write.sigmoid() * v
    state, outputs = x.new_zeros(len(x), HEADS, SIZE, 2 * SIZE), []
    for t in range(x.shape[1]):
        transition = torch.eye(SIZE) - torch.einsum("bhn,bhm->bhnm", k[:, t], erased[:, t])
        state = transition @ (decay[:, t].unsqueeze(-1) * state)
        state = state + torch.einsum("bhn,bhp->bhnp", k[:, t], written[:, t])
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], state))
    gate = (x @ w["gate_down"].T @ w["gate_up.weight"].T).unflatten(-1, (HEADS, 2 * SIZE))
    return (normed(torch.stack(outputs, 1), w) * gate.sigmoid()).flatten(2) @ w["out_proj.weight"].T


def delta_product(x, w):
    """Equation 5 of arXiv 2502.10297, gated: Householder matrices of three steps a token, with strengths up to two."""
    (q, k, v), (z, beta, dt) = projected(x, w, SIZE, 3 * SIZE, 3 * SIZE, SIZE, 3, 1)
    q, decay, beta = unit(q) * SIZE**-0.5, step_decays(dt, w), 2 * beta.sigmoid()
    k, v = unit(k.unflatten(-1, (3, SIZE))), v.unflatten(-1, (3, SIZE))  # [b, s, heads, steps, .]
    state, outputs = x.new_zeros(len(x), HEADS, SIZE, SIZE), []
    for t in range(x.shape[1]):
        state = decay[:, t, :, None, None] * state
        for i in range(3):
            key, strength = k[:, t, :, i], beta[:, t, :, i, None, None]
            householder = torch.eye(SIZE) - strength * torch.einsum("bhn,bhm->bhnm", key, key)
            state = householder @ state + strength * torch.einsum("bhn,bhp->bhnp", key, v[:, t, :, i])
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], state))
    return (normed(torch.stack(outputs, 1), w) * F.silu(z)).flatten(2) @ w["out_proj.weight"].T


def comba(x, w):
    """Section 3 of arXiv 2506.02475: feedback by the key that reads back, of the state before its decay, and of the
    output."""
    (q, k, v), (z, beta, dt) = projected(x, w, SIZE, SIZE, SIZE, SIZE, 1, 1)
    q, k, decay, beta = unit(q), unit(k), step_decays(dt, w), beta.sigmoid()
    p = w["read_back_logit"].sigmoid().unsqueeze(-1) * k
    q = (q - w["output_correction"].unsqueeze(-1) * p) * SIZE**-0.5
    state, outputs = x.new_zeros(len(x), HEADS, SIZE, SIZE), []
    for t in range(x.shape[1]):
        correction = beta[:, t] * (v[:, t] - torch.einsum("bhn,bhnp->bhp", p[:, t], state))
        state = decay[:, t, :, None, None] * state + torch.einsum("bhn,bhp->bhnp", k[:, t], correction)
        outputs.append(torch.einsum("bhn,bhnp->bhp", q[:, t], state))
    return (normed(torch.stack(outputs, 1), w) * F.silu(z)).flatten(2) @ w["out_proj.weight"].T


TRANSFORMERS = {kimi_linear, bailing_hybrid, olmo_hybrid, qwen3_next}


def test_kda_is_that_of_kimi_linear():
    assert_same(kimi_linear, type="kda", num_heads=HEADS, key_dim=SIZE)


def test_kda_with_a_safe_gate_is_that_of_bailing_hybrid():
    assert_same(
        bailing_hybrid, type="kda", num_heads=HEADS, key_dim=SIZE, decay_rank=0, gate_rank=0, gate_lower_bound=-5.0
    )


def test_gated_deltanet_with_negative_eigenvalues_is_that_of_olmo_hybrid():
    assert_same(
        olmo_hybrid, type="gated_deltanet", num_heads=HEADS, key_dim=SIZE, head_dim=2 * SIZE, allow_negative=True
    )


def test_gated_deltanet_is_that_of_qwen3_next():
    assert_same(qwen3_next, type="gated_deltanet", num_heads=HEADS, num_value_heads=2 * HEADS, key_dim=SIZE)


def test_gated_deltanet_2():
    gates = {"erase_gate": True, "write_gate": True, "allow_negative": True}
    assert_same(gdn2, type="kda", num_heads=HEADS, key_dim=SIZE, head_dim=2 * SIZE, **gates)


def test_gated_delta_product():
    assert_same(
        delta_product, type="gated_deltanet", num_heads=HEADS, key_dim=SIZE, householder_steps=3, allow_negative=True
    )


def test_comba():
    assert_same(comba, type="gated_deltanet", num_heads=HEADS, key_dim=SIZE, read_back=True, output_correction=True)


def test_a_gate_of_erasing_alone_leaves_writing_to_the_strength_per_head():
    """As GDN-2 where its write gate is the same for all channels, and keeps below one."""
    block = {"type": "kda", "num_heads": HEADS, "key_dim": SIZE, "allow_negative": True, "erase_gate": True}
    one, x, weights = built(WIDTH, **block)
    both, _, _ = built(WIDTH, **block, write_gate=True)
    *parts, beta, erase = weights["in_proj.weight"].split([*3 * (HEADS * SIZE,), HEADS, HEADS * SIZE])
    written = beta.repeat_interleave(SIZE, 0)
    both.load_state_dict({**weights, "in_proj.weight": torch.cat([*parts, erase, written])})
    torch.testing.assert_close(one(x), both(x))


@pytest.mark.parametrize("key", ["read_back", "output_correction"])
def test_steps_are_refused_beside_a_read_back_key(key):
    with pytest.raises(ValueError, match="expected false with householder_steps 2"):
        built(WIDTH, type="gated_deltanet", num_heads=HEADS, householder_steps=2, **{key: True})
