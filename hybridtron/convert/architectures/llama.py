"""Llama and Mistral: attention and a gated feed-forward layer in turn, Mistral's with a sliding window."""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.requirements import (
    cannot_express,
    require_equal,
    require_equal_biases,
    require_layer,
    require_model,
)
from hybridtron.convert.mapping.rotary import rotary_parameters, scaled_rotary
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig

_WINDOW = 4096  # of a Mistral whose config.json has no sliding_window; null there means none


def _llama_to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("mlp_bias", False, default=False)
    bias = settings.get("attention_bias", False)
    return _to_ours(settings, settings.get("num_key_value_heads"), {"qkv_bias": bias, "proj_bias": bias})


def _mistral_to_ours(settings: Settings) -> dict[str, Any]:
    window = settings.get_or_null("sliding_window", _WINDOW)
    return _to_ours(settings, settings.get_or_null("num_key_value_heads", 8), {"window": window})


def _to_ours(settings: Settings, kv_heads: int | None, keys: dict[str, Any]) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    attention = {
        "type": "attention",
        "num_heads": settings.need("num_attention_heads"),
        "num_kv_heads": kv_heads,
        "head_dim": settings.get("head_dim"),
        **scaled_rotary(settings),
        **keys,
    }
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {"attn": attention, "mlp": {"type": "swiglu", "ffn_hidden_size": settings.need("intermediate_size")}},
        "pattern": f"{settings.need('num_hidden_layers')}*(attn mlp)",
    }


def _to_theirs(name: str, own: tuple[str, ...], model: ModelConfig) -> dict[str, Any]:
    """Return config.json; `own` are the keys of attention that this architecture has and the other has not."""
    require_model(name, model)
    layers, keys = range(len(model.layer_names)), ("num_heads", "num_kv_heads", "head_dim", "rotary_base")
    for i in layers[::2]:
        require_layer(name, model, i, "attention", *keys, "rotary_scaling", *own)
        if i + 1 in layers:
            require_layer(name, model, i + 1, "swiglu", "ffn_hidden_size")
    if len(layers) % 2:
        cannot_express(name, model, layers[-1], "expected a swiglu layer after it")
    require_equal(name, model, layers[::2])
    require_equal(name, model, layers[1::2])
    attention, mlp = block_of(model, 0), block_of(model, 1)
    if name == "llama" and model.hidden_size % attention.num_heads:
        cannot_express(name, model, 0, f"its num_heads {attention.num_heads} do not divide hidden_size there")
    if attention.rotary_dim != attention.head_size:
        cannot_express(name, model, 0, "not all of its channels rotate")
    theirs = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(layers) // 2,
        "intermediate_size": mlp.inner_size,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        **rotary_parameters(attention.rotary_base, scaling=attention.rotary_scaling),
    }
    if name == "mistral":
        return {**theirs, "sliding_window": attention.window}
    require_equal_biases(name, model, 0)
    return {**theirs, "attention_bias": attention.qkv_bias, "mlp_bias": False}


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, attention, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries += parts.attention(f"{theirs}self_attn.", f"{attention}mixer.", shapes)
        entries += parts.swiglu(f"{theirs}mlp.", f"{mlp}mixer.")
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{attention}norm.weight",)))
        entries.append(Entry(f"{theirs}post_attention_layernorm.weight", (f"{mlp}norm.weight",)))
    return entries + last


LLAMA = Architecture(
    "llama", "LlamaForCausalLM", _llama_to_ours, partial(_to_theirs, "llama", ("qkv_bias", "proj_bias")), _table
)
MISTRAL = Architecture(
    "mistral", "MistralForCausalLM", _mistral_to_ours, partial(_to_theirs, "mistral", ("window",)), _table
)
