"""What Granite 4 hybrids and gpt-oss cannot express, and what of theirs we refuse."""

import pytest

from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

ATTENTION = {"type": "attention", "num_heads": 4, "sinks": True, "qkv_bias": True, "proj_bias": True}
EXPERTS = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 8}
CLAMPED = {**EXPERTS, "activation": "clamped_swiglu", "bias": True}
SHARED = {**EXPERTS, "shared_ffn_hidden_size": 8}
MAMBA = {"type": "mamba2", "head_dim": 16, "state_dim": 8}
SETTINGS = {"hidden_size": 64, "vocab_size": 98, "num_hidden_layers": 2, "intermediate_size": 8}


def to_theirs(architecture, pattern, **blocks):
    model = build({"hidden_size": 64, "vocab_size": 98, "pattern": pattern, "blocks": blocks}, ModelConfig)
    return ARCHITECTURES[architecture].to_theirs(model)


@pytest.mark.parametrize(
    ("architecture", "mixer", "other", "message"),
    [
        ("gpt_oss", {**ATTENTION, "sinks": False}, CLAMPED, r"layer 0 \(a, attention\): its sinks is false"),
        ("gpt_oss", {**ATTENTION, "softmax_scale": 0.5}, CLAMPED, r"layer 0 \(a, attention\): its softmax_scale"),
        ("gpt_oss", ATTENTION, EXPERTS, r"layer 1 \(b, moe\): its activation is 'swiglu'"),
        ("gpt_oss", ATTENTION, {**CLAMPED, "balance": "bias"}, r"layer 1 \(b, moe\): its balance is 'bias'"),
        ("granitemoehybrid", MAMBA, EXPERTS, r"layer 1 \(b, moe\): it has no shared expert"),
        ("granitemoehybrid", MAMBA, {**SHARED, "shared_gate": True}, r"layer 1 \(b, moe\): its shared_gate is true"),
        ("granitemoehybrid", ATTENTION, SHARED, r"layer 0 \(a, attention\): its sinks is true"),
    ],
)
def test_the_first_layer_that_does_not_fit_is_named(architecture, mixer, other, message):
    with pytest.raises(UserError, match=f"{architecture} cannot express {message}"):
        to_theirs(architecture, "a b", a=mixer, b=other)


def test_windows_of_one_length_alone():
    with pytest.raises(UserError, match=r"layer 2 \(c, attention\): its window is 9; expected 7 or none"):
        to_theirs("gpt_oss", "a b c b", a={**ATTENTION, "window": 7}, b=CLAMPED, c={**ATTENTION, "window": 9})


@pytest.mark.parametrize(
    ("architecture", "keys", "message"),
    [
        ("gpt_oss", {"rope_parameters": {"rope_type": "longrope", "factor": 32.0}}, "rope_type = 'longrope'"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "yarn", "mscale": 2.0}}, "mscale = 2.0"),
        ("gpt_oss", {"rope_parameters": {"rope_type": "default"}, "num_experts_per_tok": 1}, "num_experts_per_tok = 1"),
        ("granitemoehybrid", {"num_experts_per_tok": 1}, "num_experts_per_tok = 1"),
        ("granitemoehybrid", {"layer_types": ["mamba"]}, "layer_types has 1 layers; expected num_hidden_layers 2"),
        ("granitemoehybrid", {"layer_types": ["mamba", "conv"]}, "layer 1 of layer_types is 'conv'"),
    ],
)
def test_settings_without_layers_here_are_refused(architecture, keys, message):
    with pytest.raises(UserError, match=message):
        ARCHITECTURES[architecture].to_ours(Settings({**SETTINGS, **keys}))
