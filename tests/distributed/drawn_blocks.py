"""Random blocks of every primitive: keys and the values that they are drawn from."""

from __future__ import annotations

import random
from typing import Any

import pydantic

from hybridtron.mixers.registry import MIXERS

Block = dict[str, Any]

_BOTH = [False, True]
_HEADS = {"num_heads": [1, 2, 3, 4, 4, 6, 8, 8]}
_CHUNK = {"chunk_size": [4, 8, 16, 64]}
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
_STATE_SPACE = {
    "expand": [1.0, 2.0, 2.0, 1.5], "head_dim": [4, 8, 16], "state_dim": [4, 8, 6], "num_groups": [None, 1, 2, 3, 4],
}  # fmt: skip
_IMPLICIT = {"filter_order": [2, 4, 5], "filter_embedding": [3, 5], "filter_layers": [0, 1, 2],
             "filter_length": [8, 16, 64]}  # fmt: skip
_PROJECTED = {
    **_IMPLICIT, "expand": [1, 2], "projection_groups": [1, 2, 4, 3], "conv_kernel": [1, 3, 4], "bias": _BOTH,
}  # fmt: skip
_STRIPED = {"num_groups": [None, 1, 2, 3, 4, 8], "conv_kernel": [1, 3, 4]}
_INNER = {"ffn_hidden_size": [32, 32, 48, 64, 34, 36, 31]}

# Values of the keys of each primitive; those that occur twice are twice as likely. `norm_position` is drawn for all.
KEYS: dict[str, dict[str, list[Any]]] = {
    "attention": {
        **_HEADS, "num_kv_heads": [None, None, 1, 2, 3, 4], "head_dim": [None, 4, 6, 8],
        "window": [None, None, 1, 5, 9],
        "rotary_fraction": [1.0, 1.0, 0.5, 0.0], "softmax_scale": [None, 0.3], "rotary_scaling": [None, None, _YARN],
        "sinks": _BOTH, "qk_norm": ["none", "head", "full"], "qk_norm_zero_centered": _BOTH,
        "gate": ["none", "element", "head"], "output_norm": _BOTH, "softcap": [None, None, 2.0], "forget_gate": _BOTH,
        "length_scaling": [None, None, {"type": "llama4", "floor": 4}], "qkv_bias": _BOTH, "proj_bias": _BOTH,
    },
    "mla": {
        **_HEADS, "head_dim": [None, 4, 6], "value_dim": [None, 4, 8], "kv_rank": [8, 12], "q_rank": [None, 10, 20],
        "rotary_dim": [0, 2, 4], "rotary": _BOTH, "rotary_scaling": [None, None, _YARN], "softmax_scale": [None, 0.5],
    },
    "mamba1": {
        "expand": [1.0, 2.0, 1.5], "state_dim": [4, 5, 8], "dt_rank": [None, 1, 3], "conv_kernel": [1, 3, 4],
        "conv_bias": _BOTH, "proj_bias": _BOTH, "inner_norm": ["none", "plain", "learned"],
    },
    "mamba2": {
        **_STATE_SPACE, "conv_kernel": [1, 3, 4], "conv_bias": _BOTH, "proj_bias": _BOTH,
        "dt_limit_min": [0.0, 0.0, 0.02], "dt_limit_max": [None, 0.05], **_CHUNK,
    },
    "mamba3": {
        **_STATE_SPACE, "mimo_rank": [1, 1, 2, 3], "rotary_fraction": [0.5, 1.0],
        "decay_activation": ["softplus", "heavy_tail"], "output_norm": _BOTH, **_CHUNK,
    },
    "gla": {**_HEADS, "expand_k": [0.5, 1.0], "expand_v": [1.0, 0.5, 2.0], "gate_rank": [1, 4, 16], **_CHUNK},
    "gated_deltanet": {
        **_HEADS, "num_value_heads": [None, None, 4, 6, 8], "key_dim": [None, 4, 6, 8], "head_dim": [None, 4, 6],
        "conv_kernel": [1, 3, 4], "allow_negative": _BOTH, "householder_steps": [1, 1, 2, 3], "read_back": _BOTH,
        "output_correction": _BOTH, **_CHUNK,
    },
    "kda": {
        **_HEADS, "key_dim": [None, 4, 6], "head_dim": [None, 4, 6], "conv_kernel": [1, 4],
        "decay_rank": [None, 0, 3], "gate_rank": [None, 0, 3], "gate_lower_bound": [None, -5.0],
        "allow_negative": _BOTH, "erase_gate": _BOTH, "write_gate": _BOTH, **_CHUNK,
    },
    "lightning_attention": {
        **_HEADS, "head_dim": [None, 4, 8], "key_dim": [None, 4, 6], "decay": ["lightning", "retnet", "constant"],
        "decay_factor": [None, None, 0.9], "activation": ["silu", "none"], "norm": ["full", "head"],
        "gate": ["sigmoid", "silu"], "rotary": _BOTH, **_CHUNK,
    },
    "linear_attention": {
        **_HEADS, "head_dim": [None, 4, 6], "key_dim": [None, 4],
        "feature_map": ["elu", "relu", "taylor", "hadamard"], "normalize": [None, None, False],
        "shared_feature_map": _BOTH, **_CHUNK,
    },
    "rwkv6": {"head_dim": [4, 8, 16], "mix_rank": [2, 4], "decay_rank": [3, 4], **_CHUNK},
    "rwkv7": {
        "head_dim": [4, 8, 16], "decay_rank": [None, 4], "rate_rank": [None, 3], "gate_rank": [None, 6],
        "value_residual": [True, True, False], "value_rank": [None, None, 4], **_CHUNK,
    },
    "rwkv6_channel": {**_INNER, "receptance": _BOTH},
    "short_conv": {"conv_kernel": [1, 3, 4], "bias": _BOTH, "dynamic": _BOTH, "tap_rank": [None, None, 3]},
    "hyena": _PROJECTED,
    "mh_hyena": {**_PROJECTED, **_HEADS},
    "hyena_experts": {
        **_IMPLICIT, "num_experts": [2, 3, 4], "top_k": [1, 2], "expert_size": [4, 8, 12], "conv_kernel": [1, 3],
        "bias": _BOTH,
    },
    "hyena_se": {**_STRIPED, "filter_length": [1, 4, 7]},
    "hyena_mr": {**_STRIPED, "filter_length": [8, 32, 128]},
    "hyena_li": {**_STRIPED, "filter_order": [2, 4, 5]},
    "swiglu": _INNER,
    "mlp": {**_INNER, "activation": ["gelu", "relu2", "silu", "relu"], "bias": _BOTH},
    "moe": {
        "num_experts": [2, 3, 4, 4, 6, 8, 8], "top_k": [1, 2, 2, 3], "ffn_hidden_size": [8, 16, 12],
        "shared_ffn_hidden_size": [0, 0, 16, 24], "latent_size": [0, 0, 16, 12], "shared_gate": _BOTH,
        "activation": ["swiglu", "clamped_swiglu", "gelu", "relu2"], "bias": _BOTH, "num_groups": [1, 1, 2, 4],
        "top_groups": [1, 1, 2], "score": ["softmax", "sigmoid", "sqrt_softplus"],
        "normalize_top_k": [None, None, False], "scaling_factor": [1.0, 2.0], "balance": ["aux", "bias", "none"],
        "aux_loss": [None, None, 0.1], "bias_update_rate": [0.02], "z_loss": [0.0, 1e-2],
        "capacity_factor": [None, None, None, 1.0, 1.5], "dispatcher": ["alltoall", "allgather"],
    },
}  # fmt: skip


def draw_block(draw: random.Random, kind: str, hidden: int, ways: int = 1) -> Block:
    """Draw the keys of a block of one primitive until they fit together at this width, and it divides `ways`."""
    if kind == "parallel":
        branches = [draw_block(draw, draw.choice(_BRANCHES), hidden, ways) for _ in range(draw.choice([2, 2, 3]))]
        return {"type": kind, "branches": branches, "merge": draw.choice(["sum", "mean", "gate"])}
    for _ in range(2000):
        keys = {key: draw.choice(values) for key, values in KEYS[kind].items()}
        block = {"type": kind, **{key: value for key, value in keys.items() if value is not None}}
        try:
            specs = MIXERS[kind].model_validate({**block, "hidden_size": hidden}).tensors().values()
        except pydantic.ValidationError:
            continue
        if all(part.units % ways == 0 for spec in specs for part in spec.parts):
            return block
    raise AssertionError(f"no block of {kind} at width {hidden} divides into {ways}")


_BRANCHES = [kind for kind in KEYS if kind not in ("moe", "rwkv7")]
