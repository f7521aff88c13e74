"""Entries and settings of Mamba and Mamba-2 layers, which several architectures share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.requirements import cannot_express
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

_MAMBA1 = {
    "x_proj.weight": "x_proj.weight",
    "dt_proj.weight": "dt_weight",
    "dt_proj.bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "out_proj.weight": "out_proj.weight",
    "out_proj.bias": "out_proj.bias",
    "dt_layernorm.weight": "dt_norm_weight",
    "b_layernorm.weight": "B_norm_weight",
    "c_layernorm.weight": "C_norm_weight",
}
_MAMBA2 = {
    "dt_bias": "dt_bias",
    "A_log": "A_log",
    "D": "D",
    "norm.weight": "norm_weight",
    "out_proj.weight": "out_proj.weight",
    "out_proj.bias": "out_proj.bias",
}
# Keys of the blocks that every architecture with such layers has.
MAMBA1_KEYS = ("expand", "state_dim", "dt_rank", "conv_kernel", "conv_bias", "proj_bias")
MAMBA2_KEYS = ("expand", "head_dim", "state_dim", "num_groups", "conv_kernel", "conv_bias", "proj_bias")


def mamba1(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a Mamba layer, with the biases and inner norms that ours has."""
    packed = [
        Entry(f"{theirs}in_proj.{kind}", (f"{ours}in_proj.{kind}.x", f"{ours}in_proj.{kind}.z"))
        for kind in ("weight", "bias")
        if f"{ours}in_proj.{kind}.x" in shapes
    ]
    names = {there: here for there, here in _MAMBA1.items() if ours + here in shapes}
    channels, taps = shapes[f"{ours}conv_weight"]
    conv = [Entry(f"{theirs}conv1d.weight", (f"{ours}conv_weight",), shape=(channels, 1, taps))]
    if f"{ours}conv_bias" in shapes:
        conv.append(Entry(f"{theirs}conv1d.bias", (f"{ours}conv_bias",)))
    return packed + conv + parts.same(theirs, ours, names)


def mamba2(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a Mamba-2 layer, with the biases that ours has."""
    packed = [
        Entry(f"{theirs}in_proj.{kind}", tuple(f"{ours}in_proj.{kind}.{part}" for part in ("z", "x", "B", "C", "dt")))
        for kind in ("weight", "bias")
        if f"{ours}in_proj.{kind}.z" in shapes
    ]
    convolved = tuple(f"{ours}conv_weight.{part}" for part in ("x", "B", "C"))
    shape = (sum(shapes[part][0] for part in convolved), 1, shapes[convolved[0]][1])
    conv = [Entry(f"{theirs}conv1d.weight", convolved, shape=shape)]
    if f"{ours}conv_bias.x" in shapes:
        conv.append(Entry(f"{theirs}conv1d.bias", tuple(f"{ours}conv_bias.{part}" for part in ("x", "B", "C"))))
    names = {there: here for there, here in _MAMBA2.items() if ours + here in shapes}
    return packed + conv + parts.same(theirs, ours, names)


def mixer(model: ModelConfig, layer: int, theirs: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a layer of Mamba-2 (`theirs`mamba) or attention (`theirs`self_attn)."""
    ours = f"layers.{layer}.mixer."
    if block_of(model, layer).type == "mamba2":
        return mamba2(f"{theirs}mamba.", ours, shapes)
    return parts.attention(f"{theirs}self_attn.", ours, shapes)


def mamba_table(model: ModelConfig, layer: Callable[[str, str, Shapes], list[Entry]]) -> list[Entry]:
    """Return the table of a model of Mamba layers alone, whose entries `layer` gives: of a name there and one here."""
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
    for i in range(len(model.layer_names)):
        theirs, ours = f"backbone.layers.{i}.", f"layers.{i}."
        entries.append(Entry(f"{theirs}norm.weight", (f"{ours}norm.weight",)))
        entries += layer(f"{theirs}mixer.", f"{ours}mixer.", shapes)
    return entries + last


def mamba2_block(settings: Settings) -> dict[str, Any]:
    """Return the block of a Mamba-2 layer from settings mamba_..., as Bamba and Granite have them."""
    expand = settings.get("mamba_expand", 2)
    return {
        "type": "mamba2",
        "expand": expand,
        "head_dim": expand * settings.need("hidden_size") // settings.get("mamba_n_heads", 128),
        "state_dim": settings.get("mamba_d_state", 256),
        "num_groups": settings.get("mamba_n_groups", 1),
        "conv_kernel": settings.get("mamba_d_conv", 4),
        "conv_bias": settings.get("mamba_conv_bias", True),
        "proj_bias": settings.get("mamba_proj_bias", False),
        "chunk_size": settings.get("mamba_chunk_size", 256),
        **step_limits(settings),
    }


def mamba2_settings(block: Any) -> dict[str, Any]:
    """Return the settings of a Mamba-2 layer, whose expand is whole: the inverse of `mamba2_block`."""
    return {
        "mamba_expand": int(block.expand),
        "mamba_n_heads": block.num_heads,
        "mamba_d_head": block.head_dim,
        "mamba_d_state": block.state_dim,
        "mamba_n_groups": block.groups,
        "mamba_d_conv": block.conv_kernel,
        "mamba_conv_bias": block.conv_bias,
        "mamba_proj_bias": block.proj_bias,
        "mamba_chunk_size": block.chunk_size,
        "time_step_limit": list(block.dt_limit),
    }


def whole_expand(name: str, model: ModelConfig, layer: int) -> int:
    """Return `expand` of a Mamba layer. Raises UserError unless it is whole, as where config.json has it as a number
    of times hidden_size."""
    expand: float = block_of(model, layer).expand
    if expand != int(expand):
        cannot_express(name, model, layer, f"its expand is {expand:g}; expected a whole number")
    return int(expand)


def step_limits(settings: Settings, key: str = "time_step_limit") -> dict[str, float]:
    """Return the keys of our block for limits of the step size, from a pair in config.json."""
    limits = settings.get(key, (0.0, math.inf))
    try:
        low, high = (float(each["__float__"] if isinstance(each, dict) else each) for each in limits)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{settings.file}: {key} = {limits!r}: expected two numbers") from error
    return {"dt_limit_min": low} | ({} if math.isinf(high) else {"dt_limit_max": high})
