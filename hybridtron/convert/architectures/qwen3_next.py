"""Qwen3-Next: gated DeltaNet and gated attention, each with experts or a gated feed-forward layer."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.pairs import pairs_of, pattern_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal_biases, require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_base, rotary_parameters, rotary_settings
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

_EXPERTS = (
    "num_experts", "top_k", "ffn_hidden_size", "shared_ffn_hidden_size", "shared_gate", "normalize_top_k", "balance",
    "aux_loss", "z_loss",
)  # fmt: skip
_ATTENTION: dict[str, Any] = {"qk_norm": "head", "qk_norm_zero_centered": True, "gate": "element"}


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    count, interval = settings.need("num_hidden_layers"), settings.get("full_attention_interval", 4)
    default = ["linear_attention" if (i + 1) % interval else "full_attention" for i in range(count)]
    types = settings.get("layer_types", default)[:count]
    bias = settings.get("attention_bias", False)
    head_dim, experts = settings.get("head_dim", 256), _experts(settings)
    pairs = [
        ("attn" if kind == "full_attention" else "gdn", _feed_forward(settings, layer))
        for layer, kind in enumerate(types)
    ]
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "zero_centered_norms": True,
        "blocks": {
            "gdn": parts.gated_deltanet_block(settings, 16, 32, 128, 128),
            "attn": {
                "type": "attention",
                "num_heads": settings.need("num_attention_heads"),
                "num_kv_heads": settings.get("num_key_value_heads", 2),
                "head_dim": head_dim,
                "rotary_base": rotary_base(settings, 10000.0, "partial_rotary_factor"),
                "rotary_fraction": int(head_dim * _rotary_factor(settings)) / head_dim,
                "qkv_bias": bias,
                "proj_bias": bias,
                **_ATTENTION,
            },
            "mlp": {"type": "swiglu", "ffn_hidden_size": settings.get("intermediate_size", 5632)},
            **({"moe": experts} if any(feed_forward == "moe" for _, feed_forward in pairs) else {}),
        },
        "pattern": pattern_of(pairs),
    }


def _rotary_factor(settings: Settings) -> float:
    in_general = settings.get("partial_rotary_factor", 0.25)
    return rotary_settings(settings).get("partial_rotary_factor", in_general)


def _experts(settings: Settings) -> dict[str, Any]:
    """Return the block of the experts, with a loss that balances them where transformers trains with one."""
    coefficient, balanced = settings.get("router_aux_loss_coef", 0.001), settings.get("output_router_logits", False)
    return {
        "type": "moe",
        "num_experts": settings.get("num_experts", 512),
        "top_k": settings.get("num_experts_per_tok", 10),
        "ffn_hidden_size": settings.get("moe_intermediate_size", 512),
        "shared_ffn_hidden_size": settings.get("shared_expert_intermediate_size", 512),
        "shared_gate": True,
        "normalize_top_k": settings.get("norm_topk_prob", True),
        **({"aux_loss": coefficient} if balanced else {"balance": "none"}),
    }


def _feed_forward(settings: Settings, layer: int) -> str:
    """Return the block of the feed-forward layer of a layer there."""
    sparse_step = settings.get("decoder_sparse_step", 1)
    dense = layer in settings.get("mlp_only_layers", ()) or (layer + 1) % sparse_step
    return "mlp" if dense or not settings.get("num_experts", 512) else "moe"


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    require_model("qwen3_next", model, "zero_centered_norms")
    if not model.zero_centered_norms:
        raise UserError("qwen3_next cannot express model.zero_centered_norms = false")
    own = ("num_heads", "num_kv_heads", "head_dim", "rotary_base", "rotary_fraction", "qkv_bias", "proj_bias")
    mixers = {"gated_deltanet": parts.GATED_DELTANET, "attention": (*own, *_ATTENTION)}
    pairs = pairs_of("qwen3_next", model, mixers, {"swiglu": ("ffn_hidden_size",), "moe": _EXPERTS})
    theirs = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(pairs),
        "mlp_only_layers": [i for i, (_, feed_forward) in enumerate(pairs) if feed_forward.type == "swiglu"],
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "layer_types": [
            "linear_attention" if mixer.type == "gated_deltanet" else "full_attention" for mixer, _ in pairs
        ],
    }
    for i, (mixer, feed_forward) in enumerate(pairs):
        theirs |= _feed_forward_settings(model, 2 * i + 1, feed_forward)
        if mixer.type == "gated_deltanet":
            theirs |= parts.gated_deltanet_settings(mixer)
            continue
        require_keys("qwen3_next", model, 2 * i, **_ATTENTION)
        require_equal_biases("qwen3_next", model, 2 * i)
        if not mixer.rotary_dim:
            cannot_express("qwen3_next", model, 2 * i, "none of its channels rotate")
        theirs |= {
            "num_attention_heads": mixer.num_heads,
            "num_key_value_heads": mixer.kv_heads,
            "head_dim": mixer.head_size,
            "attention_bias": mixer.qkv_bias,
            **rotary_parameters(mixer.rotary_base, mixer.rotary_fraction),
        }
    return theirs


def _feed_forward_settings(model: ModelConfig, layer: int, block: Any) -> dict[str, Any]:
    if block.type == "swiglu":
        return {"intermediate_size": block.inner_size}
    require_keys("qwen3_next", model, layer, shared_gate=True)
    if block.balance == "bias":
        cannot_express("qwen3_next", model, layer, "its balance is 'bias'; expected 'aux' or 'none'")
    return {
        "num_experts": block.num_experts,
        "num_experts_per_tok": block.top_k,
        "moe_intermediate_size": block.ffn_hidden_size,
        "shared_expert_intermediate_size": block.shared_ffn_hidden_size,
        "norm_topk_prob": block.normalizes,
        "output_router_logits": block.aux_weight > 0,
        "router_aux_loss_coef": block.aux_weight,
    }


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, mixer, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        block = block_of(model, 2 * i)
        if block.type == "gated_deltanet":
            entries += _gated_deltanet(f"{theirs}linear_attn.", f"{mixer}mixer.", shapes, block.num_heads)
        else:
            entries += parts.attention(f"{theirs}self_attn.", f"{mixer}mixer.", shapes, block.num_heads)
        feed_forward = block_of(model, 2 * i + 1)
        if feed_forward.type == "moe":
            entries += _moe(f"{theirs}mlp.", f"{mlp}mixer.", feed_forward.num_experts)
        else:
            entries += parts.swiglu(f"{theirs}mlp.", f"{mlp}mixer.")
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{mixer}norm.weight",)))
        entries.append(Entry(f"{theirs}post_attention_layernorm.weight", (f"{mlp}norm.weight",)))
    return entries + last


def _gated_deltanet(theirs: str, ours: str, shapes: Shapes, key_heads: int) -> list[Entry]:
    """Return the entries of a gated DeltaNet, whose projections are interleaved by key head there."""
    packed, convolved = f"{ours}in_proj.weight.", tuple(f"{ours}conv_weight.{part}" for part in "qkv")
    (channels, taps) = (sum(shapes[part][0] for part in convolved), shapes[convolved[0]][1])
    return [
        Entry(f"{theirs}in_proj_qkvz.weight", tuple(f"{packed}{part}" for part in "qkvz"), groups=key_heads),
        Entry(f"{theirs}in_proj_ba.weight", (f"{packed}beta", f"{packed}dt"), groups=key_heads),
        Entry(f"{theirs}conv1d.weight", convolved, shape=(channels, 1, taps)),
        *parts.same(theirs, ours, {**parts.DECAYS, "norm.weight": "norm_weight", "out_proj.weight": "out_proj.weight"}),
    ]


def _moe(theirs: str, ours: str, num_experts: int) -> list[Entry]:
    entries = parts.same(theirs, ours, {"gate.weight": "router_weight", "shared_expert_gate.weight": "shared_gate"})
    entries += parts.experts(theirs, ours, num_experts)
    return entries + parts.swiglu(f"{theirs}shared_expert.", f"{ours}shared.")


QWEN3_NEXT = Architecture("qwen3_next", "Qwen3NextForCausalLM", _to_ours, _to_theirs, _table)
