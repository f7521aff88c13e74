"""Entries of the layers that several architectures share, by the name of the layer there and here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.checkpoint_reader import stored_as
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors


def stored_shapes(model: ModelConfig) -> Shapes:
    """Return the whole shape of each part that a checkpoint of the model stores, by key."""
    return {key: shape for name, spec in model_tensors(model).items() for key, shape in stored_as(name, spec)}


def same(theirs: str, ours: str, names: Mapping[str, str]) -> list[Entry]:
    """Return entries for tensors that are equal here and there: suffix there -> suffix here."""
    return [Entry(theirs + there, (ours + here,)) for there, here in names.items()]


def outer(model: ModelConfig, embedding: str, norm: str, head: str) -> tuple[list[Entry], list[Entry]]:
    """Return the entries before the layers, and those after them; with tied embeddings there is no head."""
    last = [Entry(norm, ("final_norm.weight",))]
    if not model.tie_embeddings:
        last.append(Entry(head, ("head.weight",)))
    return [Entry(embedding, ("embedding.weight",))], last


def attention(
    theirs: str, ours: str, shapes: Shapes, num_heads: int = 1, out: str = "o_proj", norm: str = "norm"
) -> list[Entry]:
    """Return the entries of attention: q_proj, k_proj, v_proj and `out`, with the biases that ours has.

    Where queries and keys are normed, also q_`norm` and k_`norm`. Gates follow the queries of each head.
    """
    entries = []
    for kind in ("weight", "bias"):
        if f"{ours}qkv.{kind}.q" in shapes:
            queries: tuple[str, ...] = (f"{ours}qkv.{kind}.q",)
            if f"{ours}qkv.{kind}.gate" in shapes:
                queries += (f"{ours}qkv.{kind}.gate",)
            entries.append(Entry(f"{theirs}q_proj.{kind}", queries, groups=num_heads if len(queries) > 1 else 1))
            entries += [Entry(f"{theirs}{part}_proj.{kind}", (f"{ours}qkv.{kind}.{part}",)) for part in "kv"]
        if f"{ours}proj.{kind}" in shapes:
            entries.append(Entry(f"{theirs}{out}.{kind}", (f"{ours}proj.{kind}",)))
    if f"{ours}q_norm_weight" in shapes:
        entries += [Entry(f"{theirs}{part}_{norm}.weight", (f"{ours}{part}_norm_weight",)) for part in "qk"]
    return entries


def head_dim_setting(model: ModelConfig, block: Any) -> dict[str, int]:
    """Return `head_dim` of attention where it is not hidden_size / num_heads, for configs that have no such field."""
    derived = block.head_size * block.num_heads == model.hidden_size
    return {} if derived else {"head_dim": block.head_size}


def short_conv(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a gated short convolution: in_proj, conv and out_proj, with the biases that ours has."""
    channels, taps = shapes[f"{ours}conv_weight"]
    entries = [Entry(f"{theirs}conv.weight", (f"{ours}conv_weight",), shape=(channels, 1, taps))]
    if f"{ours}conv_bias" in shapes:
        entries.append(Entry(f"{theirs}conv.bias", (f"{ours}conv_bias",)))
    for kind in ("weight", "bias"):
        if f"{ours}in_proj.{kind}.B" in shapes:
            entries.append(Entry(f"{theirs}in_proj.{kind}", tuple(f"{ours}in_proj.{kind}.{part}" for part in "BCx")))
            entries.append(Entry(f"{theirs}out_proj.{kind}", (f"{ours}out_proj.{kind}",)))
    return entries


def swiglu(theirs: str, ours: str) -> list[Entry]:
    """Return the entries of a gated feed-forward layer: gate_proj, up_proj and down_proj."""
    up = [Entry(f"{theirs}{part}_proj.weight", (f"{ours}gate_up.weight.{part}",)) for part in ("gate", "up")]
    return [*up, Entry(f"{theirs}down_proj.weight", (f"{ours}down.weight",))]


def experts(theirs: str, ours: str, num_experts: int) -> list[Entry]:
    """Return the entries of gated experts that are tensors of their own there: gate_proj, up_proj and down_proj."""
    names = {"gate_proj": "gate_up.gate", "up_proj": "gate_up.up", "down_proj": "down"}
    return [
        Entry(f"{theirs}experts.{expert}.{there}.weight", (ours + here,), expert=expert)
        for expert in range(num_experts)
        for there, here in names.items()
    ]


MOE_TRAINING = ("balance", "aux_loss", "z_loss", "bias_update_rate")
"""Keys of a mixture of experts that change only its training."""

GATED_DELTANET = ("num_heads", "num_value_heads", "key_dim", "head_dim", "conv_kernel")
"""Keys of a gated DeltaNet that every architecture with one can express."""

DECAYS = {"A_log": "A_log", "dt_bias": "dt_bias"}


def gated_deltanet_block(
    settings: Settings, num_heads: int, num_value_heads: int, key_dim: int, head_dim: int
) -> dict[str, Any]:
    """Return the block of a gated DeltaNet from settings linear_...; the arguments are their defaults."""
    return {
        "type": "gated_deltanet",
        "num_heads": settings.get("linear_num_key_heads", num_heads),
        "num_value_heads": settings.get("linear_num_value_heads", num_value_heads),
        "key_dim": settings.get("linear_key_head_dim", key_dim),
        "head_dim": settings.get("linear_value_head_dim", head_dim),
        "conv_kernel": settings.get("linear_conv_kernel_dim", 4),
    }


def gated_deltanet_settings(block: Any) -> dict[str, Any]:
    """Return the settings of a gated DeltaNet: the inverse of `gated_deltanet_block`."""
    return {
        "linear_num_key_heads": block.num_heads,
        "linear_num_value_heads": block.value_heads,
        "linear_key_head_dim": block.key_size,
        "linear_value_head_dim": block.value_size,
        "linear_conv_kernel_dim": block.conv_kernel,
    }
