"""gpt-oss: attention with sinks, in all or in a window, and experts with biases and clamped gates, in turn."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.pairs import pairs_of
from hybridtron.convert.mapping.requirements import cannot_express, require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_parameters, scaled_rotary
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_BASE = 150000.0
_SCALING = {  # of a config.json that says nothing about it
    "type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
_BLOCKS = {"sliding_attention": "near", "full_attention": "far"}
_ATTENTION = (
    "num_heads", "num_kv_heads", "head_dim", "rotary_base", "rotary_scaling", "window", "sinks", "qkv_bias",
    "proj_bias",
)  # fmt: skip
_EXPERTS = (
    "num_experts", "top_k", "ffn_hidden_size", "activation", "swiglu_alpha", "swiglu_limit", "bias", "normalize_top_k",
    *parts.MOE_TRAINING,
)  # fmt: skip


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.require("attention_bias", True, default=True)
    settings.ignore("output_router_logits", "router_aux_loss_coef", "experts_per_token", "initial_context_length")
    top_k, window = settings.get("num_experts_per_tok", 4), settings.get_or_null("sliding_window", 128)
    if top_k == 1:
        raise UserError(f"{settings.file}: num_experts_per_tok = 1: expected at least 2")
    attention = {
        "type": "attention",
        "num_heads": settings.get("num_attention_heads", 64),
        "num_kv_heads": settings.get_or_null("num_key_value_heads", 8),
        "head_dim": settings.get("head_dim", 64),
        **scaled_rotary(settings, _BASE, _SCALING),
        "sinks": True,
        "qkv_bias": True,
        "proj_bias": True,
    }
    experts = {
        "type": "moe",
        "num_experts": settings.get("num_local_experts", settings.get("num_experts", 128)),
        "top_k": top_k,
        "ffn_hidden_size": settings.get("intermediate_size", 2880),
        "activation": "clamped_swiglu",
        "swiglu_alpha": settings.get("swiglu_alpha", 1.702),
        "swiglu_limit": settings.get("swiglu_limit", 7.0),
        "bias": True,
        "normalize_top_k": True,  # a softmax over the chosen logits is one over all, divided by the chosen sum
        "balance": "none",
    }
    layers = _layers(settings)
    if "near" in layers:
        settings.need_window(window)
    blocks = {"near": {**attention, "window": window}, "far": attention}
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-5),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {**{name: block for name, block in blocks.items() if name in layers}, "moe": experts},
        "pattern": fold(tuple(name for layer in layers for name in (layer, "moe"))),
    }


def _layers(settings: Settings) -> list[str]:
    """Return our name of each layer's attention."""
    count, types = settings.need("num_hidden_layers"), settings.get("layer_types")
    if types is None:
        types = [("full_attention", "sliding_attention")[(i + 1) % 2] for i in range(count)]
    if len(types) != count:
        raise UserError(f"{settings.file}: layer_types has {len(types)} layers; expected num_hidden_layers {count}")
    for i, kind in enumerate(types):
        if kind not in _BLOCKS:
            raise UserError(f"{settings.file}: layer {i} of layer_types is {kind!r}: there are no such layers here")
    return [_BLOCKS[kind] for kind in types]


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    name = "gpt_oss"
    require_model(name, model)
    varies = ("window", "dispatcher", *parts.MOE_TRAINING)
    pairs = pairs_of(name, model, {"attention": _ATTENTION}, {"moe": _EXPERTS}, *varies)
    windows = [attention.window for attention, _ in pairs if attention.window is not None]
    for i, (attention, experts) in enumerate(pairs):
        require_keys(name, model, 2 * i, sinks=True, qkv_bias=True, proj_bias=True)
        if attention.window not in (None, *windows[:1]):
            cannot_express(name, model, 2 * i, f"its window is {attention.window}; expected {windows[0]} or none")
        require_keys(name, model, 2 * i + 1, activation="clamped_swiglu", bias=True)
        if not experts.normalizes:
            require_keys(name, model, 2 * i + 1, normalize_top_k=True)
        if experts.balance == "bias":
            require_keys(name, model, 2 * i + 1, balance="none")
    attention, experts = pairs[0]
    return {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(pairs),
        "layer_types": ["full_attention" if each.window is None else "sliding_attention" for each, _ in pairs],
        "sliding_window": windows[0] if windows else 128,
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "attention_bias": True,
        "num_local_experts": experts.num_experts,
        "num_experts_per_tok": experts.top_k,
        "intermediate_size": experts.ffn_hidden_size,
        "swiglu_alpha": experts.swiglu_alpha,
        "swiglu_limit": experts.swiglu_limit,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        **rotary_parameters(attention.rotary_base, scaling=attention.rotary_scaling),
    }


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, attention, moe = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries += parts.attention(f"{theirs}self_attn.", f"{attention}mixer.", shapes)
        entries.append(Entry(f"{theirs}self_attn.sinks", (f"{attention}mixer.sinks",)))
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{attention}norm.weight",)))
        entries.append(Entry(f"{theirs}post_attention_layernorm.weight", (f"{moe}norm.weight",)))
        entries += _experts(f"{theirs}mlp.", f"{moe}mixer.", shapes)
    return entries + last


def _experts(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    """Return the entries of a layer of experts: [experts, in, out], rows of gate and up in turn."""
    width = shapes[f"{ours}gate_up.gate"][1]
    weights, biases = ((f"{ours}{name}.gate", f"{ours}{name}.up") for name in ("gate_up", "gate_up_bias"))
    return [
        Entry(f"{theirs}router.weight", (f"{ours}router_weight",)),
        Entry(f"{theirs}router.bias", (f"{ours}router_logit_bias",)),
        Entry(f"{theirs}experts.gate_up_proj", weights, axis=1, groups=width, transposed=True),
        Entry(f"{theirs}experts.gate_up_proj_bias", biases, axis=1, groups=width),
        Entry(f"{theirs}experts.down_proj", (f"{ours}down",), transposed=True),
        Entry(f"{theirs}experts.down_proj_bias", (f"{ours}down_bias",)),
    ]


GPT_OSS = Architecture("gpt_oss", "GptOssForCausalLM", _to_ours, _to_theirs, _table)
