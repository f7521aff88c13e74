"""Megatron-LM's arguments: read without running what their pickle names, and turned into our settings and back."""

import argparse
import os

import pytest
import torch

from hybridtron.config.load import build
from hybridtron.convert.megatron.arguments import read_arguments
from hybridtron.convert.megatron.from_arguments import model_section
from hybridtron.convert.megatron.table import kind_of
from hybridtron.convert.megatron.to_arguments import megatron_arguments
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

GPT = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "ffn_hidden_size": 48,
    "swiglu": True,
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "normalization": "RMSNorm",
}
ATTENTION = {"type": "attention", "num_heads": 4}
MAMBA = {"type": "mamba2", "head_dim": 8, "state_dim": 8}
SWIGLU = {"type": "swiglu", "ffn_hidden_size": 48}
EXPERTS = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 24}


def model(pattern, **blocks):
    return build({"hidden_size": 32, "vocab_size": 64, "blocks": blocks, "pattern": pattern}, ModelConfig)


class Touch:
    """What writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def test_plain_values_are_read_and_no_code_runs(tmp_path):
    values = {"hidden_size": 32, "betas": (0.9, 0.95), "dtype": torch.bfloat16, "foreign": Touch(tmp_path / "made")}
    state = {"args": argparse.Namespace(**values), "other": Touch(tmp_path / "made"), "weights": torch.ones(3)}
    torch.save(state, tmp_path / "common.pt")
    assert read_arguments(tmp_path / "common.pt") == {"hidden_size": 32, "betas": (0.9, 0.95)}
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x80\x02cos\nmkdir\n."])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "common.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"common\.pt"):
        read_arguments(tmp_path / "common.pt")


@pytest.mark.parametrize(
    "config",
    [
        model("a m", a={**ATTENTION, "num_kv_heads": 2, "head_dim": 16, "rotary_fraction": 0.5, "window": 9}, m=SWIGLU),
        model(
            "a e a m",
            a={**ATTENTION, "qk_norm": "head", "gate": "element", "qkv_bias": True},
            e={**EXPERTS, "score": "sigmoid", "balance": "bias", "scaling_factor": 2.5, "shared_ffn_hidden_size": 40},
            m=SWIGLU,
        ),
        model("s a m s e", s=MAMBA, a={**ATTENTION, "rotary_fraction": 0.0}, m=SWIGLU, e={**EXPERTS, "top_k": 1}),
        model("a m", a={**ATTENTION, "qkv_bias": True, "proj_bias": True}, m={"type": "mlp", "bias": True}),
    ],
)  # fmt: skip
def test_a_model_comes_back_from_its_own_arguments(config):
    arguments = megatron_arguments(config, kind_of(config))
    again = build(model_section(arguments, "common.pt", 64), ModelConfig)
    assert len(again.layer_names) == len(config.layer_names)
    for theirs, ours in zip(again.layer_names, config.layer_names, strict=True):
        assert again.blocks[theirs].tensors() == config.blocks[ours].tensors()
    assert megatron_arguments(again, kind_of(config)) == arguments


@pytest.mark.parametrize(
    "change",
    [
        {"normalization": "LayerNorm"},
        {"apply_layernorm_1p": True},
        {"mtp_num_layers": 1},
        {"multi_latent_attention": True},
        {"position_embedding_type": "learned_absolute"},
        {"add_bias_linear": True},
        {"swiglu": False},
        {"hybrid_override_pattern": "MX"},
        {"moe_expert_capacity_factor": 1.5},
        {"num_attention_heads": None},
    ],
)
def test_arguments_that_we_have_no_layers_for_are_refused_by_name(change):
    with pytest.raises(UserError, match=r"common\.pt: args\.\w+ = .*expected") as error:
        model_section({**GPT, **change}, "common.pt", 64)
    assert next(iter(change)) in str(error.value) or "openai_gelu" in str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (model("a m", a={**ATTENTION, "sinks": True}, m=SWIGLU), r"layer 0 \(a, attention\): its sinks"),
        (model("s a", s=MAMBA, a={**ATTENTION, "qk_norm": "full"}), r"layer 1 \(a, attention\): .* norms of queries"),
        (model("s g", s=MAMBA, g={"type": "gla", "num_heads": 2}), r"layer 1 \(g, gla\)"),
        (model("a m b m", a=ATTENTION, b={**ATTENTION, "num_heads": 2}, m=SWIGLU), "layer 2 .*num_attention_heads"),
        (model("a m", a=ATTENTION, m={"type": "mlp", "activation": "relu"}), "layer 1 .*activation relu"),
        (model("a m", a=ATTENTION, m={**EXPERTS, "latent_size": 8}), "layer 1 .*its latent_size is 8"),
        (model("a m", a=ATTENTION, m={**EXPERTS, "num_groups": 2, "top_groups": 2}), "layer 1 .*its num_groups is 2"),
        (model("a m", a=ATTENTION, m={**EXPERTS, "score": "sqrt_softplus"}), "layer 1 .*its score is sqrt_softplus"),
    ],
)
def test_a_model_that_megatron_cannot_express_is_refused_by_its_first_layer(config, message):
    with pytest.raises(UserError, match=message):
        megatron_arguments(config, kind_of(config))
