"""The layers of the MAD protocol by mad-lab's names, as blocks of this project at width 128.

Every primitive states its layers as `mad_layers` of its config. Sizes are those of mad-lab's configs
(github.com/athms/mad-lab, configs/layers), which give fixed-state layers their share of a total state of 4,096.
Multi-head Hyena has 16 heads of 8 channels, as the paper counts. Primitives that mad-lab lacks have names of their own,
with a state of 2,048 a layer where that can be chosen. The last layer of a primitive also goes by the primitive's name,
and attention by the name that configs of this project give it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hybridtron.mixers.registry import MIXERS

WIDTH = 128

Blocks = Mapping[str, Mapping[str, Any]]

LAYERS: Blocks = {
    layer: {"type": name, **keys} for name, config in MIXERS.items() for layer, keys in config.mad_layers.items()
}

ALIASES: Mapping[str, str] = {
    name.replace("_", "-"): list(config.mad_layers)[-1]
    for name, config in MIXERS.items()
    if config.mad_layers and name.replace("_", "-") not in LAYERS
} | {"attn": "attention"}

AS_IN_MAD_LAB: Blocks = {
    **LAYERS,
    "mh-hyena": {**LAYERS["mh-hyena"], "num_heads": 8},  # its code exchanges heads and channels of a head
    "hyena-experts": {**LAYERS["hyena-experts"], "type": "soft_hyena_experts"},
    "moe-mlp": {"type": "soft_moe", "num_experts": 8, "top_k": 2, "ffn_hidden_size": 16},
}


def block_name(layer: str) -> str:
    """Return the layer's name in patterns, whose grammar has no dash."""
    return layer.replace("-", "_")


def blocks_by_pattern_name(match_mad_lab: bool) -> dict[str, dict[str, Any]]:
    """Return every layer by its name in patterns; with `match_mad_lab` as mad-lab's own code has it."""
    return {block_name(name): dict(block) for name, block in (AS_IN_MAD_LAB if match_mad_lab else LAYERS).items()}


def mad_lab_names() -> dict[str, str]:
    """Return, for each of this project's names of a layer in patterns, the one under which it is kept."""
    return {block_name(alias): block_name(layer) for alias, layer in ALIASES.items()}


def map_mixers(block: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """Return the block changed by `change`: its branches, where it has any, else itself."""
    if "branches" in block:
        return {**block, "branches": [map_mixers(branch, change) for branch in block["branches"]]}
    return change(block)
