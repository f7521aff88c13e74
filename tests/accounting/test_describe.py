"""What `describe` says equals what the built model has and does."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hybridtron.accounting.describe import describe
from hybridtron.backends.torch import TorchBackend
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.training.runs import resolved_tiny

PATTERNS = [
    "mamba mlp attn ffn", "3*mamba", "2*(attn ffn)", "2*(swa mlp)", "biased wide", "sinks linear taylor learned",
    "gla delta selective", "side weighed", "kda safe narrow", "gdn2 product comba",
]  # fmt: skip
MORE_BLOCKS = {
    "swa": {"type": "attention", "num_heads": 4, "window": 8},
    "biased": {
        "type": "attention",
        "num_heads": 2,
        "num_kv_heads": 1,
        "head_dim": 24,
        "qkv_bias": True,
        "proj_bias": True,
    },
    "wide": {"type": "mlp", "bias": True},
    "sinks": {"type": "attention", "num_heads": 4, "window": 8, "sinks": True},
    "linear": {"type": "linear_attention", "num_heads": 4, "chunk_size": 16},
    "taylor": {"type": "linear_attention", "num_heads": 4, "key_dim": 4, "feature_map": "taylor"},
    "learned": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "normalize": False},
    "shared": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "shared_feature_map": True},
    "gla": {"type": "gla", "num_heads": 2, "chunk_size": 16},
    "delta": {"type": "gated_deltanet", "num_heads": 2, "num_value_heads": 4, "head_dim": 8, "chunk_size": 16},
    "kda": {"type": "kda", "num_heads": 2, "head_dim": 6, "decay_rank": 5, "chunk_size": 16},
    "gdn2": {"type": "kda", "num_heads": 4, "erase_gate": True, "write_gate": True, "gate_rank": 0},
    "product": {"type": "gated_deltanet", "num_heads": 4, "householder_steps": 3, "chunk_size": 16},
    "comba": {"type": "gated_deltanet", "num_heads": 4, "read_back": True, "output_correction": True},
    "safe": {"type": "kda", "num_heads": 4, "decay_rank": 0, "gate_rank": 0, "gate_lower_bound": -5.0},
    "narrow": {"type": "kda", "num_heads": 4, "key_dim": 1, "head_dim": 6, "chunk_size": 16},
    "selective": {"type": "mamba1", "state_dim": 4},
    "side": {"type": "parallel", "branches": [{"type": "attention", "num_heads": 2}, {"type": "gla", "num_heads": 2}]},
    "weighed": {"type": "parallel", "branches": [{"type": "mamba1"}, {"type": "mlp"}], "merge": "gate"},
}


def model_and_account(pattern, tie, seq_len):
    blocks = {**resolved_tiny().model.model_dump()["blocks"], **MORE_BLOCKS}
    config = resolved_tiny(blocks=blocks, pattern=pattern, tie_embeddings=tie).model
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    return model, describe(config, seq_len)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("tie", [False, True])
def test_parameters_equal_the_counted_ones(pattern, tie):
    model, account = model_and_account(pattern, tie, 32)
    counted = account.as_json()["parameters"]
    assert counted["total"] == sum(p.numel() for p in model.parameters())
    vocabulary = [p for name, p in model.named_parameters() if name in ("embedding.weight", "head.weight")]
    assert counted["embedding"] == sum(p.numel() for p in vocabulary)
    assert counted["non_embedding"] == counted["total"] - counted["embedding"]
    assert counted["active"] == counted["total"]
    assert [layer.parameters for layer in account.layers] == [
        sum(p.numel() for p in layer.parameters()) for layer in model.layers.values()
    ]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seq_len", [1, 32, 37])
def test_flops_equal_those_of_the_flop_counter(pattern, seq_len):
    model, account = model_and_account(pattern, False, seq_len)
    tokens = torch.zeros(2, seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        nll, _ = model(tokens, tokens)
    with FlopCounterMode(display=False) as backward:
        nll.mean().backward()
    assert forward.get_total_flops() == 2 * account.flops_forward
    assert forward.get_total_flops() + backward.get_total_flops() == 2 * 3 * account.flops_forward


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tie", [False, True])
def test_multi_token_prediction_is_counted(shared, tie):
    """In parameters, and in the FLOPs of training alone."""
    mtp = {"depth": 2, "pattern": "attn moe", "shared": shared}
    experts = {"type": "moe", "num_experts": 4, "ffn_hidden_size": 8, "latent_size": 16}
    blocks = {**resolved_tiny().model.model_dump()["blocks"], "moe": experts}
    config = resolved_tiny(blocks=blocks, pattern="mamba attn", mtp=mtp, tie_embeddings=tie).model
    model, account = LanguageModel(config, TorchBackend()), describe(config, 32)
    initialize(model, config, seed=0)
    counted = account.as_json()["parameters"]
    assert counted["total"] == sum(p.numel() for p in model.parameters())
    assert counted["mtp"] == sum(p.numel() for p in model.mtp.parameters()) > 0
    unused = [p[:2].numel() for name, p in model.named_parameters() if name.endswith((".gate_up", ".down"))]
    assert counted["active"] == counted["total"] - sum(unused)
    tokens, labels = torch.zeros(2, 32, dtype=torch.long), torch.zeros(2, 34, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        nll, _, further = model(tokens, labels)
    with FlopCounterMode(display=False) as backward:
        (nll.mean() + further.mean()).backward()
    assert forward.get_total_flops() == 2 * (account.flops_forward + account.flops_mtp)
    assert forward.get_total_flops() + backward.get_total_flops() == 2 * account.flops_training
    with FlopCounterMode(display=False) as evaluation:
        model(tokens, tokens)
    assert evaluation.get_total_flops() == 2 * account.flops_forward


def test_state_is_keys_and_values_of_attention_and_the_state_of_mamba2():
    _, account = model_and_account("mamba mlp attn ffn swa", False, 32)
    assert [layer.state_size for layer in account.layers] == [64 * 8, 0, 2 * 2 * 8 * 32, 0, 2 * 4 * 8 * 8]
    assert account.state_size == sum(layer.state_size for layer in account.layers)
    recurrent, cached = 64 * 8, 2 * 2 * 8 * 32 + 2 * 4 * 8 * 8
    assert account.state_bytes == {"fp32": 4 * (recurrent + cached), "bf16": 4 * recurrent + 2 * cached}


def test_the_json_of_the_command_line(tiny, hybridtron):
    result = hybridtron("describe", tiny, "--json")
    assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert set(printed) >= {"pattern", "layers", "parameters", "flops_per_token", "state_size"}
    assert set(printed["parameters"]) == {"total", "embedding", "non_embedding", "active"}
    assert printed["flops_per_token"]["training"] == 3 * printed["flops_per_token"]["forward"]
    assert len(printed["layers"]) == 4


def test_the_picture_names_every_layer(tiny, hybridtron):
    result = hybridtron("describe", tiny)
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in ("embedding", "mamba", "mlp", "attn", "ffn", "FLOPs", "state"))
