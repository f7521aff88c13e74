"""The models that layouts are tried on: their blocks, patterns, precision and optimizers."""

from __future__ import annotations

from typing import Any

SEQ_LEN, GLOBAL_BATCH, MICRO_BATCH = 16, 8, 2
STEPS, COMPARED = 8, 4  # of one process, and of every layout
SAVED_AT, RESUMED_UNTIL = 3, 6  # steps before a checkpoint, and at the end of a run that goes on from it
PRECISION: dict[str, dict[str, Any]] = {  # of a model; else fp32
    "half": {"format": "bf16"},
    "tensorwise": {"format": "fp8", "emulate": True, "skip": ["mamba.in_proj"]},
    "halfmuon": {"format": "bf16"},
    "delayed": {"format": "fp8", "emulate": True, "skip": ["mamba.in_proj"], "recipe": "delayed"},
}
OPTIMIZER: dict[str, dict[str, Any]] = {  # of a model; else AdamW alone
    "tied": {"ema": {"decay": 0.8}, "clip_groups": {"embedding": 0.1, "norms": 0.01}},
    "muon": {
        "type": "muon",
        "ema": {"decay": 0.8},
        "clip_groups": {"embedding": 0.1, "head": 0.2, "norms": 0.01, "soft": 0.05, "attn": 9.0},
    },
    "halfmuon": {
        "type": "muon",
        "ema": {"decay": 0.9, "every": 2},
        "muon": {"scale": "spectral", "lr_ratio": 2.0, "nesterov": False},
    },
}
VOCAB = 64

BLOCKS: dict[str, dict[str, Any]] = {
    "attn": {
        "type": "attention",
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 4,
        "qkv_bias": True,
        "proj_bias": True,
    },
    "near": {"type": "attention", "num_heads": 4, "window": 5},
    "mamba": {"type": "mamba2", "head_dim": 16, "state_dim": 8, "num_groups": 4, "chunk_size": 8},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 32},
    "ffn": {"type": "mlp", "ffn_hidden_size": 32, "bias": True},
    "soft": {"type": "moe", "num_experts": 4, "ffn_hidden_size": 16, "aux_loss": 0.1, "z_loss": 1e-2},
    "sigmoid": {
        "type": "moe",
        "num_experts": 8,
        "top_k": 3,
        "ffn_hidden_size": 8,
        "shared_ffn_hidden_size": 16,
        "shared_gate": True,
        "activation": "relu2",
        "score": "sigmoid",
        "scaling_factor": 2.0,
        "balance": "bias",
        "bias_update_rate": 0.02,
    },
}
BLOCKS |= {
    "short": {"type": "short_conv", "bias": True},
    "hyena": {"type": "hyena", "expand": 2, "projection_groups": 4, "filter_order": 4, "bias": True},
    "heads": {"type": "mh_hyena", "num_heads": 8, "filter_order": 4, "filter_length": 16, "filter_layers": 0},
    "se": {"type": "hyena_se", "num_groups": 8},
    "mr": {"type": "hyena_mr", "num_groups": 4, "filter_length": 32},
    "li": {"type": "hyena_li", "filter_order": 4},
    "experts": {"type": "hyena_experts", "num_experts": 4, "expert_size": 8, "filter_order": 4, "filter_length": 16},
    "time": {"type": "rwkv6", "head_dim": 8, "mix_rank": 4, "decay_rank": 4, "chunk_size": 8},
    "channel": {"type": "rwkv6_channel", "ffn_hidden_size": 32},
}
BLOCKS |= {
    "sinks": {"type": "attention", "num_heads": 4, "window": 5, "sinks": True},
    "learned": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "normalize": False},
    "shared": {"type": "linear_attention", "num_heads": 4, "feature_map": "hadamard", "shared_feature_map": True},
    "latent": {"type": "mla", "num_heads": 4, "kv_rank": 12, "q_rank": 20, "rotary_dim": 4},
    "gla": {"type": "gla", "num_heads": 4, "chunk_size": 8},
    "delta": {
        "type": "gated_deltanet",
        "num_heads": 4,
        "num_value_heads": 8,
        "key_dim": 8,
        "head_dim": 4,
        "chunk_size": 8,
    },
    "selective": {"type": "mamba1", "state_dim": 4},
    "normed": {"type": "mamba1", "state_dim": 4, "inner_norm": "learned", "proj_bias": True, "conv_bias": False},
    "limited": {
        "type": "mamba2",
        "head_dim": 16,
        "state_dim": 8,
        "num_groups": 4,
        "chunk_size": 8,
        "conv_bias": False,
        "proj_bias": True,
        "dt_limit_min": 0.02,
        "dt_limit_max": 0.05,
    },
}
BLOCKS |= {
    "full": {"type": "attention", "num_heads": 8, "num_kv_heads": 4, "qk_norm": "full", "norm_position": "post"},
    "gated": {
        "type": "attention",
        "num_heads": 4,
        "qk_norm": "head",
        "qk_norm_zero_centered": True,
        "gate": "element",
        "rotary_fraction": 0.5,
    },
    "per_head": {"type": "attention", "num_heads": 4, "qk_norm": "head", "gate": "head", "qkv_bias": True},
    "after": {"type": "swiglu", "ffn_hidden_size": 32, "norm_position": "post"},
}
BLOCKS |= {
    "lightning": {"type": "lightning_attention", "num_heads": 4, "chunk_size": 8},
    "retention": {
        "type": "lightning_attention",
        "num_heads": 4,
        "key_dim": 4,
        "decay": "retnet",
        "activation": "none",
        "norm": "head",
        "gate": "silu",
        "rotary": True,
        "chunk_size": 8,
    },
    "time7": {
        "type": "rwkv7",
        "head_dim": 8,
        "decay_rank": 4,
        "rate_rank": 4,
        "gate_rank": 6,
        "value_rank": 4,
        "chunk_size": 8,
    },
    "channel7": {"type": "rwkv6_channel", "ffn_hidden_size": 32, "receptance": False},
    "dynamic": {"type": "short_conv", "conv_kernel": 4, "bias": True, "dynamic": True, "tap_rank": 6},
    "rotating": {"type": "mamba3", "head_dim": 16, "state_dim": 8, "num_groups": 4, "chunk_size": 8},
    "ranked": {
        "type": "mamba3",
        "head_dim": 16,
        "state_dim": 8,
        "num_groups": 4,
        "mimo_rank": 2,
        "chunk_size": 8,
        "output_norm": True,
    },
}
BLOCKS |= {
    "capped": {
        "type": "attention",
        "num_heads": 8,
        "num_kv_heads": 4,
        "softcap": 2.0,
        "output_norm": True,
        "length_scaling": {"type": "llama4", "floor": 4},
    },
    "forgetting": {
        "type": "attention",
        "num_heads": 4,
        "window": 9,
        "sinks": True,
        "forget_gate": True,
        "gate": "head",
        "rotary_fraction": 0.0,
    },
    "stretched": {
        "type": "mla",
        "num_heads": 4,
        "kv_rank": 12,
        "rotary_dim": 4,
        "softmax_scale": 0.5,
        "rotary_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8},
    },
}
BLOCKS |= {
    "kda": {"type": "kda", "num_heads": 4, "head_dim": 6, "decay_rank": 5, "chunk_size": 8},
    "gdn2": {
        "type": "kda",
        "num_heads": 4,
        "decay_rank": 0,
        "gate_rank": 0,
        "gate_lower_bound": -5.0,
        "erase_gate": True,
        "write_gate": True,
        "chunk_size": 8,
    },
    "product": {"type": "gated_deltanet", "num_heads": 4, "key_dim": 8, "householder_steps": 2},
    "comba": {
        "type": "gated_deltanet",
        "num_heads": 4,
        "num_value_heads": 8,
        "key_dim": 8,
        "head_dim": 4,
        "read_back": True,
        "output_correction": True,
    },
}
BLOCKS["beside"] = {"type": "parallel", "branches": [BLOCKS["gla"], BLOCKS["near"], BLOCKS["mlp"]], "merge": "gate"}
BLOCKS["uneven"] = {  # context parallelism cuts the heads of its first branch and leaves the 34 units of the second
    "type": "parallel",
    "branches": [{"type": "attention", "num_heads": 4}, {"type": "swiglu", "ffn_hidden_size": 34}, BLOCKS["gla"]],
}
BLOCKS["tight"] = {**BLOCKS["soft"], "capacity_factor": 1.0, "activation": "clamped_swiglu", "bias": True}
BLOCKS["grouped"] = {
    **BLOCKS["sigmoid"],
    "score": "sqrt_softplus",
    "latent_size": 16,
    "num_groups": 4,
    "top_groups": 2,
    "aux_loss": 0.1,
}
BLOCKS["narrow"] = {**BLOCKS["tight"], "latent_size": 16}
BLOCKS["gathered"] = {**BLOCKS["soft"], "dispatcher": "allgather"}
MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"pattern": "attn ffn near mlp"},
    "hybrid": {"pattern": "mamba attn mlp mamba mlp"},
    "half": {"pattern": "mamba attn mlp mamba"},
    "tensorwise": {"pattern": "mamba attn mlp soft"},
    "delayed": {"pattern": "mamba attn mlp soft"},
    "tied": {"pattern": "mamba mlp attn mlp", "tie_embeddings": True},
    "moe": {"pattern": "attn soft mamba sigmoid"},
    "dropping": {"pattern": "attn tight ffn"},
    "gathered": {"pattern": "attn gathered ffn"},
    "hyenas": {"pattern": "short hyena heads se mr li experts mlp"},
    "states": {"pattern": "sinks learned shared gla delta selective normed limited beside latent"},
    "rwkv": {"pattern": "time channel attn time channel"},
    "linear": {"pattern": "lightning time7 retention channel7 time7 lightning"},
    "mamba3": {"pattern": "dynamic rotating ranked ffn"},
    "uneven": {"pattern": "uneven ffn"},
    "latents": {
        "pattern": "attn grouped mamba narrow",
        "mtp": {"depth": 2, "pattern": "near grouped", "shared": True},
    },
    "further": {
        "pattern": "mamba mlp attn mlp",
        "mtp": {"depth": 3, "pattern": "attn mlp", "loss_weight": 0.7},
        "tie_embeddings": True,
    },
    "muon": {"pattern": "attn soft mamba delta mlp"},
    "halfmuon": {"pattern": "mamba attn mlp mamba"},
    "normed": {"pattern": "full after gated per_head", "zero_centered_norms": True},
    "options": {"pattern": "capped forgetting stretched mlp"},
    "packed": {"pattern": "attn mamba channel selective experts beside"},
    "mapped": {"pattern": "attn mamba mamba mlp mlp", "vocab_size": 384},
    "grouped": {"pattern": "attn mlp mamba ffn", "residual": {"type": "parallel"}},
    "sandwich": {"pattern": "attn mlp mamba ffn", "residual": {"type": "sandwich"}},
    "hyper": {
        "pattern": "after attn mlp mamba ffn",
        "init_std": 0.1,
        "residual": {"type": "hyper_connections", "streams": 3, "sinkhorn_iterations": 4},
    },
    "depth": {
        "pattern": "attn mlp mamba ffn after",
        "residual": {"type": "attention_residuals", "block_size": 2},
    },
    "deltas": {"pattern": "kda product attn gdn2 comba mlp"},
}
ISOLATED = {"packed", "deltas", "further"}  # models whose sequences hold documents that are kept apart
INITIAL: dict[str, tuple[str, dict[str, Any]]] = {  # model -> the one whose weights it begins with, and train.init_*
    "mapped": (
        "hybrid",
        {
            "init_map": {"attn": "attn", "layers.1": "layers.3", "layers.2": "layers.3", "layers.3": "layers.4",
                         "layers.4": None},
            "init_left_over": ["layers.0", "layers.2"],
            "init_vocabulary": "extend",
        },
    ),
}  # fmt: skip
