"""OLMo-Hybrid: gated DeltaNet with norms before its layers, attention with norms after them, each with a gated
feed-forward layer."""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridtron.convert.mapping import parts
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.pairs import pairs_of, pattern_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal_biases, require_keys, require_model
from hybridtron.convert.mapping.rotary import rotary_base, rotary_parameters
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig

_NORM_EPS = 1e-5  # of gated DeltaNet's outputs, whatever the norm_eps of the model
Norms = dict[str, tuple[str, str]]
"""Names of the norms of a layer there, of its mixer and its feed-forward layer, by the type of the mixer."""

# save_pretrained renames norms of both types of layers alike, which the published models do not.
_SAVED: Norms = {
    "gated_deltanet": ("attention_layer_norm", "feedforward_layer_norm"),
    "attention": ("feedforward_layer_norm", "post_feedforward_layernorm"),
}
_PUBLISHED: Norms = {**_SAVED, "attention": ("post_attention_layernorm", "post_feedforward_layernorm")}
_IN_MEMORY: Norms = {**_PUBLISHED, "gated_deltanet": ("input_layernorm", "post_attention_layernorm")}


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    initial = ("a_log_min", "a_log_max", "dt_min", "dt_max", "dt_init_floor")
    settings.ignore(*(f"linear_{key}" for key in initial))
    heads, width = settings.need("num_attention_heads"), settings.need("hidden_size")
    key_dim = settings.get("linear_key_head_dim", int(0.75 * width / settings.get("linear_num_key_heads", heads)))
    bias, mlp = settings.get("attention_bias", False), {"type": "swiglu"}
    mlp["ffn_hidden_size"] = settings.need("intermediate_size")
    return {
        "hidden_size": width,
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {
            "gdn": {
                **parts.gated_deltanet_block(settings, heads, heads, key_dim, 2 * key_dim),
                "norm_eps": _NORM_EPS,
                "allow_negative": settings.get("linear_allow_neg_eigval", True),
            },
            "attn": {
                "type": "attention",
                "num_heads": heads,
                "num_kv_heads": settings.get("num_key_value_heads"),
                "head_dim": settings.get("head_dim"),
                "qkv_bias": bias,
                "proj_bias": bias,
                "qk_norm": "full",
                "norm_position": "post",
                **_rotary(settings),
            },
            "mlp": mlp,
            "mlp_post": {**mlp, "norm_position": "post"},
        },
        "pattern": pattern_of(
            [("gdn", "mlp") if kind == "linear_attention" else ("attn", "mlp_post") for kind in _layer_types(settings)]
        ),
    }


def _rotary(settings: Settings) -> dict[str, Any]:
    """Return the keys of rotary positions; a base of null, as the published models have, means that there are none."""
    rotary = settings.get("rope_parameters") or {}
    if rotary.get("rope_theta", settings.values.get("rope_theta", 10000.0)) is None:
        settings.ignore("rope_parameters", "rope_theta")
        return {"rotary_fraction": 0.0}
    return {"rotary_base": rotary_base(settings)}


def _layer_types(settings: Settings) -> list[str]:
    count = settings.need("num_hidden_layers")
    default = ["full_attention" if i % 4 == 3 else "linear_attention" for i in range(count)]
    if "full_attention" not in default:
        default[-1] = "full_attention"
    return settings.get("layer_types", default)


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    require_model("olmo_hybrid", model)
    own = ("num_heads", "num_kv_heads", "head_dim", "rotary_base", "rotary_fraction", "qkv_bias", "proj_bias")
    mixers = {
        "gated_deltanet": (*parts.GATED_DELTANET, "allow_negative", "norm_eps"),
        "attention": (*own, "qk_norm", "norm_position"),
    }
    feed_forward = {"swiglu": ("ffn_hidden_size", "norm_position")}
    pairs = pairs_of("olmo_hybrid", model, mixers, feed_forward, "norm_position")
    if {mixer.type for mixer, _ in pairs} != mixers.keys():
        raise UserError("olmo_hybrid cannot express a model without gated_deltanet, or without attention")
    theirs = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "pad_token_id": None,  # in place of the published models', which may be beyond this vocabulary
        "num_hidden_layers": len(pairs),
        "intermediate_size": pairs[0][1].inner_size,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "layer_types": [
            "linear_attention" if mixer.type == "gated_deltanet" else "full_attention" for mixer, _ in pairs
        ],
    }
    for i, (mixer, _) in enumerate(pairs):
        if mixer.type == "gated_deltanet":
            if (mixer.norm_eps or model.norm_eps) != _NORM_EPS:
                cannot_express("olmo_hybrid", model, 2 * i, f"expected norm_eps {_NORM_EPS:g} of its outputs")
            require_keys("olmo_hybrid", model, 2 * i + 1, norm_position="pre")
            theirs |= {**parts.gated_deltanet_settings(mixer), "linear_allow_neg_eigval": mixer.allow_negative}
        else:
            require_keys("olmo_hybrid", model, 2 * i, qk_norm="full", norm_position="post")
            require_keys("olmo_hybrid", model, 2 * i + 1, norm_position="post")
            theirs |= _attention_settings(model, 2 * i)
    return theirs


def _attention_settings(model: ModelConfig, layer: int) -> dict[str, Any]:
    attention = block_of(model, layer)
    require_equal_biases("olmo_hybrid", model, layer)
    if attention.rotary_dim not in (0, attention.head_size):
        cannot_express("olmo_hybrid", model, layer, "only some of its channels rotate")
    rotary: dict[str, Any] = {"rope_parameters": {"rope_type": "default", "rope_theta": None}, "rope_theta": None}
    return {
        "num_attention_heads": attention.num_heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_size,
        "attention_bias": attention.qkv_bias,
        **(rotary_parameters(attention.rotary_base) if attention.rotary_dim else rotary),
    }


def _table(norms: Norms, model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i, name in enumerate(model.layer_names[::2]):
        theirs, mixer, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        kind = model.blocks[name].type
        if kind == "gated_deltanet":
            entries += _gated_deltanet(f"{theirs}linear_attn.", f"{mixer}mixer.", shapes)
        else:
            entries += parts.attention(f"{theirs}self_attn.", f"{mixer}mixer.", shapes)
        entries += parts.swiglu(f"{theirs}mlp.", f"{mlp}mixer.")
        for norm, ours in zip(norms[kind], (mixer, mlp), strict=True):
            entries.append(Entry(f"{theirs}{norm}.weight", (f"{ours}norm.weight",)))
    return entries + last


def _gated_deltanet(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    projections = {"q": "q", "k": "k", "v": "v", "g": "z", "b": "beta", "a": "dt"}
    packed = f"{ours}in_proj.weight."
    entries = [Entry(f"{theirs}{there}_proj.weight", (packed + here,)) for there, here in projections.items()]
    for part in "qkv":
        channels, taps = shapes[f"{ours}conv_weight.{part}"]
        entries.append(
            Entry(f"{theirs}{part}_conv1d.weight", (f"{ours}conv_weight.{part}",), shape=(channels, 1, taps))
        )
    names = {**parts.DECAYS, "o_norm.weight": "norm_weight", "o_proj.weight": "out_proj.weight"}
    return entries + parts.same(theirs, ours, names)


OLMO_HYBRID = Architecture(
    "olmo_hybrid",
    "OlmoHybridForCausalLM",
    _to_ours,
    _to_theirs,
    partial(_table, _SAVED),
    (partial(_table, _PUBLISHED), partial(_table, _IN_MEMORY)),
)
