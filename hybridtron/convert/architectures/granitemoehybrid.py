"""Granite 4 hybrids: Mamba-2 or attention, each followed by a gated feed-forward layer or experts with a shared one."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts, state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.pairs import pairs_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal_biases, require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_base, rotary_parameters
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_MULTIPLIERS = ("embedding_multiplier", "residual_multiplier", "logits_scaling")
_BLOCKS = {"linear_attention": "mamba", "mamba": "mamba", "full_attention": "attn", "attention": "attn"}
_THEIRS = {"mamba2": "linear_attention", "attention": "full_attention"}
_KEYS = {
    "mamba2": (*state_space.MAMBA2_KEYS, "dt_limit_min", "dt_limit_max"),
    "attention": (
        "num_heads", "num_kv_heads", "head_dim", "rotary_base", "rotary_fraction", "softmax_scale", "qkv_bias",
        "proj_bias",
    ),
    "swiglu": ("ffn_hidden_size",),
    "moe": (
        "num_experts", "top_k", "ffn_hidden_size", "shared_ffn_hidden_size", "normalize_top_k", *parts.MOE_TRAINING,
    ),
}  # fmt: skip


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.ignore("mamba_d_head", "num_local_experts", "num_experts_per_tok", "intermediate_size", "layer_types")
    settings.ignore("layers_block_type", "output_router_logits", "router_aux_loss_coef", "init_method")
    settings.require("normalization_function", "rmsnorm", default="rmsnorm")
    layers = []
    for i, kind in enumerate(_layer_types(settings)):
        if kind not in _BLOCKS:
            raise UserError(f"{settings.file}: layer {i} of layer_types is {kind!r}: there are no such layers here")
        layers += [_BLOCKS[kind], "moe" if settings.get("num_local_experts", 8) else "mlp"]
    blocks = {"mamba": state_space.mamba2_block, "attn": _our_attention, "mlp": _our_mlp, "moe": _our_experts}
    for name in ("mamba", "attn"):
        if name not in layers:
            blocks[name](settings)  # its settings are known, and change nothing
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        **{key: float(settings.get(key, 1.0)) for key in _MULTIPLIERS},
        "blocks": {name: block(settings) for name, block in blocks.items() if name in layers},
        "pattern": fold(tuple(layers)),
    }


def _layer_types(settings: Settings) -> list[str]:
    """Return the type of each layer, in either of the forms that config.json has had."""
    count = settings.need("num_hidden_layers")
    types = settings.get("layer_types") or settings.get("layers_block_type") or ["linear_attention"] * count
    if len(types) != count:
        raise UserError(f"{settings.file}: layer_types has {len(types)} layers; expected num_hidden_layers {count}")
    return list(types)


def _our_attention(settings: Settings) -> dict[str, Any]:
    settings.require("position_embedding_type", "rope", "nope", None)
    bias, rotates = settings.get("attention_bias", False), settings.get("position_embedding_type") == "rope"
    return {
        "type": "attention",
        "num_heads": settings.get("num_attention_heads", 32),
        "num_kv_heads": settings.get("num_key_value_heads"),
        "head_dim": settings.get("head_dim"),
        "rotary_base": rotary_base(settings),
        "rotary_fraction": 1.0 if rotates else 0.0,
        "softmax_scale": float(settings.get("attention_multiplier", 1.0)),
        "qkv_bias": bias,
        "proj_bias": bias,
    }


def _our_mlp(settings: Settings) -> dict[str, Any]:
    return {"type": "swiglu", "ffn_hidden_size": settings.get("shared_intermediate_size", 1024)}


def _our_experts(settings: Settings) -> dict[str, Any]:
    """Return the block of experts: a softmax over the chosen logits is one over all, divided by the chosen sum."""
    top_k = settings.get("num_experts_per_tok", 2)
    if top_k == 1:
        raise UserError(f"{settings.file}: num_experts_per_tok = 1: expected at least 2")
    return {
        "type": "moe",
        "num_experts": settings.get("num_local_experts", 8),
        "top_k": top_k,
        "ffn_hidden_size": settings.need("intermediate_size"),
        "shared_ffn_hidden_size": settings.get("shared_intermediate_size", 1024),
        "normalize_top_k": True,
        "balance": "none",
    }


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    name = "granitemoehybrid"
    require_model(name, model, *_MULTIPLIERS)
    mixers = {kind: _KEYS[kind] for kind in ("mamba2", "attention")}
    feed_forward = {kind: _KEYS[kind] for kind in ("swiglu", "moe")}
    pairs = pairs_of(name, model, mixers, feed_forward, "chunk_size", "dispatcher", *parts.MOE_TRAINING)
    for i, (mixer, other) in enumerate(pairs):
        _check(name, model, 2 * i, mixer)
        _check(name, model, 2 * i + 1, other)
        if other.type != pairs[0][1].type:
            cannot_express(name, model, 2 * i + 1, f"expected {pairs[0][1].type}, as in the layers before")
    theirs: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(pairs),
        "layer_types": [_THEIRS[mixer.type] for mixer, _ in pairs],
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "num_local_experts": 0,
        **{key: getattr(model, key) for key in _MULTIPLIERS},
        # Of layers that may not be there; their defaults must divide the width.
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "mamba_n_heads": 1,
    }
    firsts = {block.type: block for pair in reversed(pairs) for block in pair}
    for kind, block in firsts.items():
        theirs |= _WRITE[kind](model, block)
    return theirs


def _check(name: str, model: ModelConfig, layer: int, block: Any) -> None:
    """Raise UserError for values that no key of theirs has."""
    if block.type == "mamba2":
        state_space.whole_expand(name, model, layer)
    elif block.type == "attention":
        require_equal_biases(name, model, layer)
        if block.rotary_dim not in (0, block.head_size):
            cannot_express(name, model, layer, "some of its channels rotate; expected all or none")
    elif block.type == "moe":
        if not block.shared_ffn_hidden_size:
            cannot_express(name, model, layer, "it has no shared expert")
        if not block.normalizes:
            require_keys(name, model, layer, normalize_top_k=True)
        if block.balance == "bias":
            require_keys(name, model, layer, balance="none")


def _attention(model: ModelConfig, block: Any) -> dict[str, Any]:
    theirs = {
        "num_attention_heads": block.num_heads,
        "num_key_value_heads": block.kv_heads,
        "attention_bias": block.qkv_bias,
        "attention_multiplier": block.softmax_scale or block.head_size**-0.5,
        "position_embedding_type": "rope" if block.rotary_dim else "nope",
        **rotary_parameters(block.rotary_base),
    }
    return theirs | parts.head_dim_setting(model, block)


def _mamba(model: ModelConfig, block: Any) -> dict[str, Any]:
    return state_space.mamba2_settings(block)


def _mlp(model: ModelConfig, block: Any) -> dict[str, Any]:
    return {"shared_intermediate_size": block.inner_size}


def _experts(model: ModelConfig, block: Any) -> dict[str, Any]:
    return {
        "num_local_experts": block.num_experts,
        "num_experts_per_tok": block.top_k,
        "intermediate_size": block.ffn_hidden_size,
        "shared_intermediate_size": block.shared_ffn_hidden_size,
    }


_WRITE = {"mamba2": _mamba, "attention": _attention, "swiglu": _mlp, "moe": _experts}


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, mixer, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{mixer}norm.weight",)))
        entries += state_space.mixer(model, 2 * i, theirs, shapes)
        entries.append(Entry(f"{theirs}post_attention_layernorm.weight", (f"{mlp}norm.weight",)))
        mlp = f"{mlp}mixer."
        if block_of(model, 2 * i + 1).type == "moe":
            moe = f"{theirs}block_sparse_moe."
            entries.append(Entry(f"{moe}router.layer.weight", (f"{mlp}router_weight",)))
            entries.append(Entry(f"{moe}input_linear.weight", (f"{mlp}gate_up.gate", f"{mlp}gate_up.up"), axis=1))
            entries.append(Entry(f"{moe}output_linear.weight", (f"{mlp}down",)))
            mlp = f"{mlp}shared."
        gate_up = (f"{mlp}gate_up.weight.gate", f"{mlp}gate_up.weight.up")
        entries.append(Entry(f"{theirs}shared_mlp.input_linear.weight", gate_up))
        entries.append(Entry(f"{theirs}shared_mlp.output_linear.weight", (f"{mlp}down.weight",)))
    return entries + last


GRANITE_MOE_HYBRID = Architecture("granitemoehybrid", "GraniteMoeHybridForCausalLM", _to_ours, _to_theirs, _table)
