"""Qwen3 and OLMo 2: attention that norms queries and keys, and a gated feed-forward layer, in turn.

Qwen3 norms each head and has windows in some layers; OLMo 2 norms all heads together, and its layers' norms stand after
them.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.pairs import pairs_of, pattern_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal_biases, require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_parameters, scaled_rotary
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig

_NORMS: dict[str, dict[str, Any]] = {
    "qwen3": {"qk_norm": "head", "norm_position": "pre"},
    "olmo2": {"qk_norm": "full", "norm_position": "post"},
}
_NORM_NAMES = {
    "qwen3": ("input_layernorm", "post_attention_layernorm"),
    "olmo2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


def _qwen3_to_ours(settings: Settings) -> dict[str, Any]:
    keys = {"head_dim": settings.get("head_dim", 128)}
    model = _to_ours("qwen3", settings, 1e-6, settings.get_or_null("num_key_value_heads", 32), keys)
    count, first = settings.need("num_hidden_layers"), settings.get("max_window_layers", 28)
    window = settings.get_or_null("sliding_window", 4096) if settings.get("use_sliding_window", False) else None
    settings.ignore("sliding_window")
    default = ["sliding_attention" if window and i >= first else "full_attention" for i in range(count)]
    near = [kind == "sliding_attention" for kind in settings.get("layer_types", default)]
    if any(near):
        settings.need_window(window)
        model["blocks"]["near"] = {**model["blocks"]["attn"], "window": window}
    return {**model, "pattern": pattern_of([("near" if each else "attn", "mlp") for each in near])}


def _olmo2_to_ours(settings: Settings) -> dict[str, Any]:
    keys = {"head_dim": settings.get("head_dim")}
    return _to_ours("olmo2", settings, 1e-5, settings.get("num_key_value_heads"), keys)


def _to_ours(
    name: str, settings: Settings, norm_eps: float, kv_heads: int | None, keys: dict[str, Any]
) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    bias, position = settings.get("attention_bias", False), _NORMS[name]["norm_position"]
    inner = settings.need("intermediate_size")
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", norm_eps),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {
            "attn": {
                "type": "attention",
                "num_heads": settings.need("num_attention_heads"),
                "num_kv_heads": kv_heads,
                **scaled_rotary(settings),
                "qkv_bias": bias,
                "proj_bias": bias,
                **_NORMS[name],
                **keys,
            },
            "mlp": {"type": "swiglu", "ffn_hidden_size": inner, "norm_position": position},
        },
        "pattern": f"{settings.need('num_hidden_layers')}*(attn mlp)",
    }


def _to_theirs(name: str, own: tuple[str, ...], model: ModelConfig) -> dict[str, Any]:
    """Return config.json; `own` are the keys of attention that may vary from layer to layer."""
    require_model(name, model)
    keys = (
        "num_heads", "num_kv_heads", "head_dim", "rotary_base", "rotary_scaling", "qkv_bias", "proj_bias", "qk_norm",
    )  # fmt: skip
    feed_forward = {"swiglu": ("ffn_hidden_size", "norm_position")}
    pairs = pairs_of(name, model, {"attention": (*keys, "norm_position", *own)}, feed_forward, *own)
    position = _NORMS[name]["norm_position"]
    for i in range(len(pairs)):
        require_keys(name, model, 2 * i, **_NORMS[name])
        require_keys(name, model, 2 * i + 1, norm_position=position)
    attention, mlp = pairs[0]
    require_equal_biases(name, model, 0)
    return {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "pad_token_id": None,  # in place of one that may be beyond this vocabulary
        "num_hidden_layers": len(pairs),
        "intermediate_size": mlp.inner_size,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "attention_bias": attention.qkv_bias,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        **rotary_parameters(attention.rotary_base, scaling=attention.rotary_scaling),
        **(_windows(name, model, [mixer.window for mixer, _ in pairs]) if own else {}),
    }


def _windows(name: str, model: ModelConfig, windows: list[int | None]) -> dict[str, Any]:
    window = next((each for each in windows if each), None)
    for i, each in enumerate(windows):
        if each not in (None, window):
            cannot_express(name, model, 2 * i, f"its window is {each}; expected {window}, as the first such layer has")
    return {
        "use_sliding_window": window is not None,
        "sliding_window": window,
        "layer_types": ["sliding_attention" if each else "full_attention" for each in windows],
    }


def _table(name: str, model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, attention, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries += parts.attention(f"{theirs}self_attn.", f"{attention}mixer.", shapes)
        entries += parts.swiglu(f"{theirs}mlp.", f"{mlp}mixer.")
        for norm, ours in zip(_NORM_NAMES[name], (attention, mlp), strict=True):
            entries.append(Entry(f"{theirs}{norm}.weight", (f"{ours}norm.weight",)))
    return entries + last


QWEN3 = Architecture(
    "qwen3", "Qwen3ForCausalLM", _qwen3_to_ours, partial(_to_theirs, "qwen3", ("window",)), partial(_table, "qwen3")
)
OLMO2 = Architecture(
    "olmo2", "Olmo2ForCausalLM", _olmo2_to_ours, partial(_to_theirs, "olmo2", ()), partial(_table, "olmo2")
)
