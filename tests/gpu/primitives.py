"""A block of every primitive, of a size that kernels for GPUs take."""

from __future__ import annotations

from typing import Any

import torch

from hybridtron.backends.torch import TorchBackend
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

WIDTH, VOCAB = 256, 256
PRIMITIVES: dict[str, dict[str, Any]] = {
    "attention": {"num_heads": 4, "num_kv_heads": 2},
    "mla": {"num_heads": 4, "value_dim": 64, "kv_rank": 64, "q_rank": 128, "rotary_dim": 32},
    "linear_attention": {"num_heads": 4, "chunk_size": 64},
    "lightning_attention": {"num_heads": 4, "chunk_size": 64},
    "gla": {"num_heads": 4, "chunk_size": 64},
    "gated_deltanet": {"num_heads": 2, "num_value_heads": 4, "key_dim": 64, "head_dim": 64, "chunk_size": 64},
    "kda": {"num_heads": 4, "chunk_size": 64},
    "mamba1": {"state_dim": 16},
    "mamba2": {"head_dim": 64, "state_dim": 64, "num_groups": 2, "chunk_size": 64},
    "mamba3": {"head_dim": 64, "state_dim": 64, "num_groups": 2, "chunk_size": 64},
    "swiglu": {"ffn_hidden_size": 512},
    "mlp": {"ffn_hidden_size": 512, "bias": True},
    "moe": {"num_experts": 4, "ffn_hidden_size": 128, "shared_ffn_hidden_size": 128, "z_loss": 1e-2},
    "parallel": {
        "branches": [
            {"type": "attention", "num_heads": 4, "window": 64},
            {"type": "mamba2", "head_dim": 64, "state_dim": 64},
            {"type": "hyena", "filter_order": 16},
        ],
        "merge": "gate",
    },
    "short_conv": {"bias": True},
    "hyena": {"filter_order": 16},
    "mh_hyena": {"num_heads": 8, "filter_order": 16},
    "hyena_se": {"num_groups": 16},
    "hyena_mr": {"num_groups": 16, "filter_length": 128},
    "hyena_li": {"num_groups": 64, "filter_order": 16},
    "hyena_experts": {"num_experts": 4, "top_k": 2, "expert_size": 64, "filter_order": 16},
    "rwkv6": {"head_dim": 64, "mix_rank": 16, "decay_rank": 16, "chunk_size": 64},
    "rwkv6_channel": {"ffn_hidden_size": 512},
    "rwkv7": {"head_dim": 64, "decay_rank": 16, "rate_rank": 16, "gate_rank": 32, "value_rank": 16},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "attention with sinks": {"type": "attention", "num_heads": 4, "num_kv_heads": 2, "sinks": True},
    "sliding attention": {"type": "attention", "num_heads": 4, "window": 48, "qk_norm": "head"},
    "mamba2 with limited steps and biases": {
        "type": "mamba2", "head_dim": 64, "state_dim": 64, "proj_bias": True, "conv_bias": False,
        "dt_limit_min": 0.02, "dt_limit_max": 0.05,
    },
    "mamba3 with ranks": {
        "type": "mamba3", "head_dim": 64, "state_dim": 64, "mimo_rank": 4, "output_norm": True,
    },
    "short_conv of generated taps": {"type": "short_conv", "conv_kernel": 4, "dynamic": True, "bias": True},
    "moe with biases and a capacity": {
        "type": "moe", "num_experts": 4, "ffn_hidden_size": 128, "bias": True, "capacity_factor": 1.0,
        "balance": "bias",
    },
    "linear attention by Taylor": {"type": "linear_attention", "num_heads": 4, "key_dim": 8, "feature_map": "taylor"},
}  # fmt: skip
CASES = {**{name: {"type": name, **keys} for name, keys in PRIMITIVES.items()}, **VARIANTS}
ROUTED = {case for case, keys in CASES.items() if keys["type"] in ("moe", "hyena_experts")}


def model_config(case: str) -> ModelConfig:
    return ModelConfig.model_validate(
        {"hidden_size": WIDTH, "vocab_size": VOCAB, "blocks": {"x": CASES[case]}, "pattern": "x", "init_std": 0.1}
    )


def built(case: str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> LanguageModel:
    """Build a model of one layer, with the same values on every device."""
    config = model_config(case)
    model = LanguageModel(config, TorchBackend(dtype, device, config.norm_eps))
    initialize(model, config, seed=0)
    return model


def tokens(seq_len: int = 200, batch: int = 2) -> torch.Tensor:
    """Draw ids [b, s + 1]; the length is a multiple of no block."""
    return torch.randint(VOCAB, (batch, seq_len + 1), generator=torch.Generator().manual_seed(1))
