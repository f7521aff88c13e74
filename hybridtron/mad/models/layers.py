"""The layers of the MAD protocol by mad-lab's names, as blocks of this project at width 128.

Sizes are those of mad-lab's configs (github.com/athms/mad-lab, configs/layers), which give fixed-state layers their
share of a total state of 4,096. Multi-head Hyena has 16 heads of 8 channels, as the paper counts. Primitives that
mad-lab lacks have names of their own, with a state of 2,048 a layer where that can be chosen. What mad-lab calls
otherwise than this project goes by both names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

WIDTH = 128

Blocks = Mapping[str, Mapping[str, Any]]

_ATTENTION = {"type": "attention", "qkv_bias": True, "proj_bias": True}
_WINDOW = 33  # a token and the 32 before it
_LINEAR = {"type": "linear_attention", "feature_map": "hadamard", "normalize": True}
_HYENA = {"bias": True, "projection_groups": 4}

LAYERS: Blocks = {
    "attention": {**_ATTENTION, "num_heads": 1},
    "mh-attention": {**_ATTENTION, "num_heads": 16},
    "sliding-attention": {**_ATTENTION, "num_heads": 1, "window": _WINDOW},
    "mh-sliding-attention": {**_ATTENTION, "num_heads": 16, "window": _WINDOW},
    "linear-attention": {**_LINEAR, "num_heads": 1},
    "mh-linear-attention": {**_LINEAR, "num_heads": 16},
    "gated-linear-attention": {"type": "gla", "num_heads": 1, "expand_k": 1.0},
    "mh-gated-linear-attention": {"type": "gla", "num_heads": 8, "expand_k": 1.0},
    "hyena": {"type": "hyena", "expand": 4, "filter_order": 4, **_HYENA},
    "mh-hyena": {"type": "mh_hyena", "num_heads": 16, "filter_order": 2, **_HYENA},
    "hyena-experts": {"type": "hyena_experts", "num_experts": 8, "expert_size": 16, "filter_order": 16, "bias": True},
    "mamba": {"type": "mamba1", "state_dim": 4},
    "rwkv6-time-mixer": {"type": "rwkv6", "head_dim": 16},
    "rwkv6-channel-mixer": {"type": "rwkv6_channel", "ffn_hidden_size": 512},
    "mlp": {"type": "mlp"},
    "swiglu": {"type": "swiglu", "ffn_hidden_size": 352},
    "moe-mlp": {"type": "moe", "num_experts": 8, "top_k": 2, "ffn_hidden_size": 16, "balance": "none"},
    "mamba2": {"type": "mamba2", "head_dim": 16, "state_dim": 8},
    "gated-deltanet": {"type": "gated_deltanet", "num_heads": 8},
    "hyena-se": {"type": "hyena_se"},
    "hyena-mr": {"type": "hyena_mr"},
    "hyena-li": {"type": "hyena_li", "filter_order": 16},
    "short-conv": {"type": "short_conv"},
}

ALIASES: Mapping[str, str] = {
    "mamba1": "mamba",
    "moe": "moe-mlp",
    "gla": "mh-gated-linear-attention",
    "rwkv6": "rwkv6-time-mixer",
    "rwkv6-channel": "rwkv6-channel-mixer",
}

AS_IN_MAD_LAB: Blocks = {
    **LAYERS,
    "mh-hyena": {**LAYERS["mh-hyena"], "num_heads": 8},  # its code exchanges heads and channels of a head
    "hyena-experts": {**LAYERS["hyena-experts"], "type": "soft_hyena_experts"},
    "moe-mlp": {"type": "soft_moe", "num_experts": 8, "top_k": 2, "ffn_hidden_size": 16},
}


def block_name(layer: str) -> str:
    """The layer's name in patterns, whose grammar has no dash."""
    return layer.replace("-", "_")


def blocks_by_pattern_name(match_mad_lab: bool) -> dict[str, dict[str, Any]]:
    """Every layer by its name in patterns; with `match_mad_lab` those that mad-lab has otherwise are as it has them."""
    return {block_name(name): dict(block) for name, block in (AS_IN_MAD_LAB if match_mad_lab else LAYERS).items()}


def pattern_of_layers(layers: Sequence[str]) -> str:
    """The pattern of layers given one by one, in mad-lab's names or with _ for -.

    Raises:
        UserError: for an unknown layer, with the nearest name.
    """
    known = {block_name(name) for name in (*LAYERS, *ALIASES)}
    for layer in layers:
        if block_name(layer) not in known:
            raise UserError(f"--layers: {layer!r}: expected {one_of(layer, (*LAYERS, *ALIASES))}")
    if not layers:
        raise UserError("--layers: expected at least one layer")
    return " ".join(map(block_name, layers))


def mad_lab_names() -> dict[str, str]:
    """In patterns, for each of this project's names of a layer the one under which it is kept."""
    return {block_name(alias): block_name(layer) for alias, layer in ALIASES.items()}
