"""Llama and Mistral: attention and a gated feed-forward layer in turn, Mistral's with a sliding window."""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridtron.convert.architectures import parts
from hybridtron.convert.architectures.architecture import Architecture, Settings, cannot_express
from hybridtron.convert.mapping import Entry
from hybridtron.model.config import ModelConfig


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.require("mlp_bias", False, default=False)
    rotary = settings.get("rope_parameters") or {}
    attention = {
        "type": "attention",
        "num_heads": settings.get("num_attention_heads"),
        "num_kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "window": settings.get("sliding_window"),
        "rotary_base": rotary.get("rope_theta", settings.get("rope_theta", 10000.0)),
        "qkv_bias": settings.get("attention_bias", False),
        "proj_bias": settings.get("attention_bias", False),
    }
    return {
        "hidden_size": settings.get("hidden_size"),
        "vocab_size": settings.get("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {
            "attn": attention,
            "mlp": {"type": "swiglu", "ffn_hidden_size": settings.get("intermediate_size")},
        },
        "pattern": f"{settings.get('num_hidden_layers')}*(attn mlp)",
    }


def _to_theirs(name: str, model: ModelConfig) -> dict[str, Any]:
    cannot_express(name, model, 0, "not written yet")


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


LLAMA = Architecture("llama", "LlamaForCausalLM", _to_ours, partial(_to_theirs, "llama"), _table)
MISTRAL = Architecture("mistral", "MistralForCausalLM", _to_ours, partial(_to_theirs, "mistral"), _table)
