"""Attention's options and latent attention against those who published them: outputs and gradients on equal weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config, Gemma2Config, KimiLinearConfig, Llama4TextConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2RotaryEmbedding
from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearAttention
from transformers.models.llama4.modeling_llama4 import Llama4TextAttention

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.schema import dispatch
from hybridtron.mixers.registry import MIXERS

BATCH, SEQ_LEN, WIDTH = 2, 70, 32
POSITIONS = torch.arange(SEQ_LEN).unsqueeze(0)
SHAPE = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8}
OF_THEIRS = {
    "hidden_size": WIDTH, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 4,
    "attn_implementation": "eager",
}  # fmt: skip


def built(**block):
    torch.manual_seed(0)
    mixer = dispatch({"hidden_size": WIDTH, **block}, MIXERS).build(TorchBackend())
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.normal_(0, (parameter.shape[-1] if parameter.dim() > 1 else 4) ** -0.5)
    return mixer


def causal_mask():
    return torch.full((SEQ_LEN, SEQ_LEN), -math.inf, dtype=torch.float64).triu(1)[None, None]


def weights_of(mixer):
    """In float64, with gradients of their own."""
    return {name: p.detach().double().requires_grad_() for name, p in mixer.named_parameters()}


def assert_same(mixer, weights, theirs):
    """theirs maps tokens [b, s, h] in float64 to outputs that depend on the weights: outputs within 1e-4, gradients
    within 1e-3 of the largest."""
    x = torch.randn(SEQ_LEN, BATCH, WIDTH)
    target = torch.randn(SEQ_LEN, BATCH, WIDTH)
    tokens, wide = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = mixer(tokens), theirs(wide.transpose(0, 1)).transpose(0, 1)
    assert expected.abs().max() > 0.05
    assert (y - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    own = torch.autograd.grad((y * target).sum(), [tokens, *mixer.parameters()])
    wanted = torch.autograd.grad((expected * target).sum(), [wide, *weights.values()])
    for name, one, other in zip(["x", *weights], own, wanted, strict=True):
        assert (one - other).abs().max() < 1e-3 * other.abs().max(), name


def called(module, state, *arguments, **keywords):
    """A layer of transformers with these tensors as its parameters."""
    return torch.func.functional_call(module.double(), state, arguments, keywords)[0]


def attention_state(w):
    q, k, v = w["qkv.weight"].split([32, 16, 16])
    names = {"q_proj": q, "k_proj": k, "v_proj": v, "o_proj": w["proj.weight"]}
    return {f"{name}.weight": tensor for name, tensor in names.items()}


def test_capped_scores_are_those_of_gemma_2():
    mixer = built(type="attention", **SHAPE, softcap=1.5, softmax_scale=0.5)
    config = Gemma2Config(**OF_THEIRS, query_pre_attn_scalar=4, attn_logit_softcapping=1.5)
    theirs, w = Gemma2Attention(config, layer_idx=1), weights_of(mixer)
    rotary = Gemma2RotaryEmbedding(config)
    assert_same(mixer, w, lambda x: called(theirs, attention_state(w), x, rotary(x, POSITIONS), causal_mask()))


def test_scaling_by_length_is_that_of_llama_4():
    scaling = {"type": "llama4", "scale": 0.5, "floor": 8}
    mixer = built(type="attention", **SHAPE, rotary_fraction=0.0, length_scaling=scaling)
    config = Llama4TextConfig(
        **OF_THEIRS, attn_temperature_tuning=True, attn_scale=0.5, floor_scale=8, no_rope_layers=[0, 0, 0, 0]
    )
    theirs, w = Llama4TextAttention(config, layer_idx=0), weights_of(mixer)
    assert_same(mixer, w, lambda x: called(theirs, attention_state(w), x, None, causal_mask()))


def test_scaling_by_length_of_inkling():
    """Its formula alone (modeling_inkling.py): its attention has convolutions and relative positions besides."""
    mixer = built(
        type="attention", **SHAPE, rotary_fraction=0.0, length_scaling={"type": "inkling", "scale": 0.5, "floor": 8}
    )
    w = weights_of(mixer)

    def theirs(x):
        q, k, v = heads_of(x, w["qkv.weight"], 4, 2, 2)
        tau = 1 + 0.5 * torch.log((torch.arange(1, SEQ_LEN + 1) / 8).clamp(min=1))
        scores = torch.einsum("bihd,bjhd->bhij", q * tau[:, None, None], k.repeat_interleave(2, 2)) / 8**0.5
        return outputs(scores, v.repeat_interleave(2, 2)).flatten(2) @ w["proj.weight"].T

    assert_same(mixer, w, theirs)


def heads_of(x, weight, *heads):
    parts = (x @ weight[: 8 * sum(heads)].T).split([8 * n for n in heads], -1)
    return [part.unflatten(-1, (-1, 8)) for part in parts]


def outputs(scores, v):
    return torch.einsum("bhij,bjhd->bihd", (scores + causal_mask()).softmax(-1), v)


@pytest.mark.parametrize("gated", [False, True])
def test_forget_gates_by_the_equations_of_the_forgetting_transformer(gated):
    """Section 3 of Lin et al. 2025, every product of gates written out; with the norm and the gate of its Pro block."""
    options = {"output_norm": True, "gate": "element", "qk_norm": "head"} if gated else {}
    mixer = built(type="attention", **SHAPE, rotary_fraction=0.0, forget_gate=True, **options)
    w = weights_of(mixer)

    def normed(t, weight):
        return t * torch.rsqrt(t.square().mean(-1, keepdim=True) + 1e-5) * weight

    def theirs(x):
        q, k, v = heads_of(x, w["qkv.weight"], 4, 2, 2)
        if gated:
            q, k = normed(q, w["q_norm_weight"]), normed(k, w["k_norm_weight"])
        forget = torch.sigmoid(x @ w["qkv.weight"][-4:].T + w["forget_bias"]).transpose(1, 2)  # [b, h, s]
        between = (torch.arange(SEQ_LEN) > POSITIONS.T)[:, None] & (
            torch.arange(SEQ_LEN) <= torch.arange(SEQ_LEN).view(1, -1, 1)
        )  # [j, i, l]: j < l <= i
        products = torch.where(between.transpose(0, 1), forget[:, :, None, None], 1.0).prod(-1)  # [b, h, i, j]
        scores = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) / 8**0.5 + products.log()
        y = outputs(scores, v.repeat_interleave(2, 2))
        if gated:
            y = normed(y, w["output_norm_weight"]) * torch.sigmoid(x @ w["qkv.weight"][64:96].T).unflatten(-1, (4, 8))
        return y.flatten(2) @ w["proj.weight"].T

    assert_same(mixer, w, theirs)


HEADS, NOPE, ROPE, VALUE, RANK = 4, 8, 4, 6, 12
LATENT = {"num_heads": HEADS, "head_dim": NOPE, "value_dim": VALUE, "kv_rank": RANK}


def latent_state(w, q_rank, rope=ROPE, interleaved=False):
    """Heads end with the rotated channels there, and the latent comes before the shared key."""
    pairs = torch.arange(rope).view(2, -1).T.flatten() if interleaved else torch.arange(rope)
    down, up, q = w["kv_down"], w["kv_up.weight"], w["q.weight"].unflatten(0, (HEADS, -1))
    keys, values = (t.unflatten(0, (HEADS, -1)) for t in up.split([HEADS * NOPE, HEADS * VALUE]))
    state = {
        "kv_a_proj_with_mqa.weight": torch.cat([down[rope:], down[pairs]]),
        "kv_a_layernorm.weight": w["kv_norm"],
        "kv_b_proj.weight": torch.cat([keys, values], 1).flatten(0, 1),
        ("q_b_proj" if q_rank else "q_proj") + ".weight": torch.cat([q[:, rope:], q[:, pairs]], 1).flatten(0, 1),
        "o_proj.weight": w["out_proj.weight"],
    }
    return state | ({"q_a_proj.weight": w["q_down"], "q_a_layernorm.weight": w["q_norm"]} if q_rank else {})


def latent_config(kind, q_rank, **more):
    return kind(
        hidden_size=WIDTH, num_attention_heads=HEADS, num_key_value_heads=HEADS, q_lora_rank=q_rank, kv_lora_rank=RANK,
        qk_rope_head_dim=ROPE, qk_nope_head_dim=NOPE, v_head_dim=VALUE, attn_implementation="eager", **more,
    )  # fmt: skip


def with_our_eps(module):
    for norm in module.modules():
        if isinstance(norm, nn.Module) and hasattr(norm, "variance_epsilon"):
            norm.variance_epsilon = 1e-5
    return module


YARN = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1}


@pytest.mark.parametrize("yarn", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("q_rank", [None, 20])
def test_latent_attention_is_that_of_deepseek_v3(q_rank, interleaved, yarn):
    """Pairs of rotated channels that lie side by side are another order of the same rows. With YaRN the magnitude is
    taken from the keys and its square put into the scale of the scores (mscale_all_dim)."""
    options = {}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if yarn:
        rope = {"rope_type": "yarn", "mscale": 1.0, "mscale_all_dim": 1.0, **YARN}
        stretched = {name: YARN[name] for name in ("factor", "original_max_position_embeddings")}
        options["rotary_scaling"] = {"type": "yarn", "attention_factor": 1.0, **stretched}
        options["softmax_scale"] = (NOPE + ROPE) ** -0.5 * (0.1 * math.log(4.0) + 1) ** 2
    mixer = built(type="mla", **LATENT, q_rank=q_rank, rotary_dim=ROPE, **options)
    config = latent_config(DeepseekV3Config, q_rank, rope_interleave=interleaved, rope_parameters=rope)
    theirs, w = with_our_eps(DeepseekV3Attention(config, layer_idx=0)), weights_of(mixer)
    rotary, state = DeepseekV3RotaryEmbedding(config), latent_state(w, q_rank, interleaved=interleaved)
    assert_same(mixer, w, lambda x: called(theirs, state, x, rotary(x, POSITIONS), causal_mask()))


@pytest.mark.parametrize("q_rank", [None, 20])
def test_latent_attention_without_positions_is_that_of_kimi_linear(q_rank):
    mixer = built(type="mla", **LATENT, q_rank=q_rank, rotary_dim=ROPE, rotary=False)
    theirs = with_our_eps(KimiLinearAttention(latent_config(KimiLinearConfig, q_rank), layer_idx=0))
    w = weights_of(mixer)
    assert_same(mixer, w, lambda x: called(theirs, latent_state(w, q_rank), x, causal_mask()))


def test_latent_attention_without_a_shared_key_by_its_equations():
    """As GLM-5-Next has it: keys and values of all heads from the latent alone."""
    mixer = built(type="mla", **LATENT, rotary_dim=0)
    w = weights_of(mixer)

    def theirs(x):
        latent = F.rms_norm(x @ w["kv_down"].T, (RANK,), w["kv_norm"], 1e-5)
        k, v = (latent @ w["kv_up.weight"].T).split([HEADS * NOPE, HEADS * VALUE], -1)
        q, k, v = ((t).unflatten(-1, (HEADS, -1)) for t in (x @ w["q.weight"].T, k, v))
        y = outputs(torch.einsum("bihd,bjhd->bhij", q, k) / NOPE**0.5, v)
        return y.flatten(2) @ w["out_proj.weight"].T

    assert_same(mixer, w, theirs)


@pytest.mark.parametrize("key", [{"rotary": False}, {"rotary_dim": 0}])
def test_stretched_frequencies_of_nothing_that_rotates_are_refused(key):
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
    with pytest.raises(ValueError, match="expected null without channels that rotate"):
        built(type="mla", **{**LATENT, "rotary_dim": ROPE, **key}, rotary_scaling=scaling)
    with pytest.raises(ValueError, match="expected null without channels that rotate"):
        built(type="attention", **SHAPE, rotary_fraction=0.0, rotary_scaling=scaling)
