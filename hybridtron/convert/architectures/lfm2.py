"""LFM2 of Liquid AI: gated short convolutions and attention, each with a gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.pairs import pairs_of, pattern_of
from hybridtron.convert.mapping.requirements import require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_base, rotary_parameters
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig

_BASE = 1e6  # of rotary frequencies, where config.json has none
_UNUSED = """block_dim block_mlp_init_scale block_norm_eps block_out_init_scale block_use_xavier_init conv_dim
    conv_dim_out conv_use_xavier_init num_heads theta use_pos_enc"""  # which transformers does not read


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("block_use_swiglu", True, default=True)
    settings.ignore(*_UNUSED.split())
    types = _layer_types(settings)
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("norm_eps", 1e-5),
        "tie_embeddings": settings.get("tie_embedding", settings.get("tie_word_embeddings", True)),
        "blocks": {
            "conv": {
                "type": "short_conv",
                "conv_kernel": settings.get("conv_L_cache", 3),
                "bias": settings.get("conv_bias", False),
            },
            "attn": {
                "type": "attention",
                "num_heads": settings.need("num_attention_heads"),
                "num_kv_heads": settings.get("num_key_value_heads", 8),
                "head_dim": settings.get("head_dim"),
                "rotary_base": rotary_base(settings, _BASE),
                "qk_norm": "head",
            },
            "mlp": {"type": "swiglu", "ffn_hidden_size": _inner_size(settings)},
        },
        "pattern": pattern_of([("conv" if kind == "conv" else "attn", "mlp") for kind in types]),
    }


def _layer_types(settings: Settings) -> list[str]:
    count = settings.need("num_hidden_layers")
    attention = settings.get("full_attn_idxs", range(count))
    default = ["full_attention" if i in attention else "conv" for i in range(count)]
    return settings.get("layer_types", default)[:count]


def _inner_size(settings: Settings) -> int:
    """Return the inner width of the feed-forward layers, which config.json states as 3/2 of it before rounding."""
    size = settings.get("block_ff_dim", settings.get("intermediate_size", 12288))
    multiplier, multiple = settings.get("block_ffn_dim_multiplier", 1.0), settings.get("block_multiple_of", 256)
    if not settings.get("block_auto_adjust_ff_dim", True):
        return size
    return -(-int(multiplier * int(2 * size / 3)) // multiple) * multiple


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    require_model("lfm2", model)
    mixers = {
        "short_conv": ("conv_kernel", "bias"),
        "attention": ("num_heads", "num_kv_heads", "head_dim", "rotary_base", "qk_norm"),
    }
    pairs = pairs_of("lfm2", model, mixers, {"swiglu": ("ffn_hidden_size",)})
    theirs = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "pad_token_id": None,  # in place of 0, whose embedding transformers would not train
        "num_hidden_layers": len(pairs),
        "intermediate_size": pairs[0][1].inner_size,
        "block_auto_adjust_ff_dim": False,
        "norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "layer_types": ["conv" if mixer.type == "short_conv" else "full_attention" for mixer, _ in pairs],
    }
    for i, (mixer, _) in enumerate(pairs):
        if mixer.type == "short_conv":
            theirs |= {"conv_L_cache": mixer.conv_kernel, "conv_bias": mixer.bias}
            continue
        require_keys("lfm2", model, 2 * i, qk_norm="head")
        theirs |= {
            "num_attention_heads": mixer.num_heads,
            "num_key_value_heads": mixer.kv_heads,
            "head_dim": mixer.head_size,
            **rotary_parameters(mixer.rotary_base),
        }
    return theirs


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.embedding_norm.weight", "lm_head.weight")
    for i, name in enumerate(model.layer_names[::2]):
        theirs, mixer, mlp = f"model.layers.{i}.", f"layers.{2 * i}.mixer.", f"layers.{2 * i + 1}.mixer."
        if model.blocks[name].type == "short_conv":
            entries += parts.short_conv(f"{theirs}conv.", mixer, shapes)
        else:
            entries += parts.attention(f"{theirs}self_attn.", mixer, shapes, out="out_proj", norm="layernorm")
        names = {"w1.weight": "gate_up.weight.gate", "w3.weight": "gate_up.weight.up", "w2.weight": "down.weight"}
        entries += parts.same(f"{theirs}feed_forward.", mlp, names)
        entries.append(Entry(f"{theirs}operator_norm.weight", (f"layers.{2 * i}.norm.weight",)))
        entries.append(Entry(f"{theirs}ffn_norm.weight", (f"layers.{2 * i + 1}.norm.weight",)))
    return entries + last


LFM2 = Architecture("lfm2", "Lfm2ForCausalLM", _to_ours, _to_theirs, _table)
