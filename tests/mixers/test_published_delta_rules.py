"""Mixers of the gated delta rule give outputs and gradients of their published definitions on equal weights.

Where Hugging Face transformers has a layer it is the other side. Else the equations are written out here in float64,
token by token.
"""

import torch
from torch.func import functional_call
from transformers import BailingHybridConfig, KimiLinearConfig, OlmoHybridConfig, Qwen3NextConfig
from transformers.models.bailing_hybrid.modeling_bailing_hybrid import BailingHybridDeltaAttention
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearDeltaAttention
from transformers.models.olmo_hybrid.modeling_olmo_hybrid import OlmoHybridGatedDeltaNet
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from tests.mixers.test_published_layers import built

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
