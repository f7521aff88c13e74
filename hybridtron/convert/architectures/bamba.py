"""Bamba: Mamba-2 or attention, each followed by a gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts, state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of, layers_of
from hybridtron.convert.mapping.pairs import pairs_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal_biases, require_model
from hybridtron.convert.mapping.rotary import rotary_base, rotary_parameters
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_ROTARY_FRACTION = 0.5  # where rope_parameters give none, whatever stands elsewhere


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.require("mlp_bias", False, default=False)
    settings.ignore("mamba_d_head", "partial_rotary_factor", "num_logits_to_keep", "z_loss_coefficient")
    hidden = settings.need("hidden_size")
    bias = settings.get("attention_bias", False)
    rotary = settings.get("rope_parameters") or {}
    fraction = rotary.get("partial_rotary_factor", _ROTARY_FRACTION)
    head_dim = settings.get("head_dim") or hidden // settings.need("num_attention_heads")
    settings.agree("attn_rotary_emb", round(head_dim * fraction))
    blocks: dict[str, dict[str, Any]] = {
        "mamba": state_space.mamba2_block(settings),
        "attn": {
            "type": "attention",
            "num_heads": settings.need("num_attention_heads"),
            "num_kv_heads": settings.get_or_null("num_key_value_heads", 8),
            "head_dim": settings.get("head_dim"),
            "rotary_base": rotary_base(settings, 10000.0, "partial_rotary_factor"),
            "rotary_fraction": fraction,
            "qkv_bias": bias,
            "proj_bias": bias,
        },
    }
    attention = settings.get("attn_layer_indices", ())
    layers = ["attn" if i in attention else "mamba" for i in range(settings.need("num_hidden_layers"))]
    return {
        "hidden_size": hidden,
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-5),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {
            **{name: block for name, block in blocks.items() if name in layers},
            "mlp": {"type": "swiglu", "ffn_hidden_size": settings.need("intermediate_size")},
        },
        "pattern": fold(tuple(name for layer in layers for name in (layer, "mlp"))),
    }


_MIXERS = {
    "mamba2": ("dt_limit_min", "dt_limit_max", *state_space.MAMBA2_KEYS),
    "attention": (
        "num_heads",
        "num_kv_heads",
        "head_dim",
        "rotary_base",
        "rotary_fraction",
        "qkv_bias",
        "proj_bias",
    ),
}


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    name = "bamba"
    require_model(name, model)
    pairs_of(name, model, _MIXERS, {"swiglu": ("ffn_hidden_size",)}, "chunk_size")
    attention, mamba = layers_of(model, "attention"), layers_of(model, "mamba2")
    for i in attention:
        require_equal_biases(name, model, i)
        if not block_of(model, i).rotary_dim:
            cannot_express(name, model, i, "it has no rotary positions")
    theirs: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(model.layer_names) // 2,
        "intermediate_size": block_of(model, 1).inner_size,
        "attn_layer_indices": [i // 2 for i in attention],
        "hidden_act": "silu",
        "mlp_bias": False,
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        # Of layers that may not be there; their defaults must divide the width.
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "mamba_n_heads": 1,
    }
    if attention:
        theirs |= _attention(model, block_of(model, attention[0]))
    if mamba:
        state_space.whole_expand(name, model, mamba[0])
        theirs |= state_space.mamba2_settings(block_of(model, mamba[0]))
    return theirs


def _attention(model: ModelConfig, block: Any) -> dict[str, Any]:
    theirs = {
        "num_attention_heads": block.num_heads,
        "num_key_value_heads": block.kv_heads,
        "attention_bias": block.qkv_bias,
        **rotary_parameters(block.rotary_base, block.rotary_fraction),
    }
    return theirs | parts.head_dim_setting(model, block)


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, mixer, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{mixer}norm.weight",)))
        entries += state_space.mixer(model, 2 * i, theirs, shapes)
        entries.append(Entry(f"{theirs}pre_ff_layernorm.weight", (f"{mlp}norm.weight",)))
        entries += parts.swiglu(f"{theirs}feed_forward.", f"{mlp}mixer.")
    return entries + last


BAMBA = Architecture("bamba", "BambaForCausalLM", _to_ours, _to_theirs, _table)
