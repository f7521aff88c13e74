"""Jamba: Mamba with norms of dt, B and C, or attention without positions, each followed by a gated feed-forward layer
or a mixture of such layers."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts, state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of, layers_of
from hybridtron.convert.mapping.pairs import pairs_of
from hybridtron.convert.mapping.requirements import cannot_express, require_model
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_IGNORED = """use_mamba_kernels use_mambapy use_associative_scan output_router_logits router_aux_loss_coef
    num_logits_to_keep calc_logits_for_entire_prompt n_ctx""".split()  # noqa: SIM905
_MIXERS = {
    "mamba1": (*state_space.MAMBA1_KEYS, "inner_norm", "inner_norm_eps"),
    "attention": ("num_heads", "num_kv_heads", "head_dim", "rotary_fraction"),
}
_FEED_FORWARD = {
    "swiglu": ("ffn_hidden_size",),
    "moe": ("num_experts", "top_k", "ffn_hidden_size", "normalize_top_k", *parts.MOE_TRAINING),
}


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.ignore(*_IGNORED)
    settings.require("mamba_inner_layernorms", True, default=True)
    settings.require("sliding_window", None)
    rank, inner = settings.get("mamba_dt_rank", "auto"), settings.need("intermediate_size")
    experts = settings.get("num_experts", 16)
    blocks: dict[str, dict[str, Any]] = {
        "mamba": {
            "type": "mamba1",
            "expand": settings.get("mamba_expand", 2),
            "state_dim": settings.get("mamba_d_state", 16),
            "dt_rank": None if rank == "auto" else rank,
            "conv_kernel": settings.get("mamba_d_conv", 4),
            "conv_bias": settings.get("mamba_conv_bias", True),
            "proj_bias": settings.get("mamba_proj_bias", False),
            "inner_norm": "learned",
        },
        "attn": {
            "type": "attention",
            "num_heads": settings.get("num_attention_heads", 32),
            "num_kv_heads": settings.get_or_null("num_key_value_heads", 8),
            "head_dim": settings.get("head_dim"),
            "rotary_fraction": 0.0,
        },
        "mlp": {"type": "swiglu", "ffn_hidden_size": inner},
        "moe": {
            "type": "moe",
            "num_experts": experts,
            "top_k": settings.get("num_experts_per_tok", 2),
            "ffn_hidden_size": inner,
            "normalize_top_k": False,
            "balance": "none",
        },
    }
    periods = {"attn": ("attn", 8, 4), "moe": ("expert", 2, 1)}
    at = {
        name: (settings.get(f"{key}_layer_period", period), settings.get(f"{key}_layer_offset", offset))
        for name, (key, period, offset) in periods.items()
    }
    layers: list[str] = []
    for i in range(settings.need("num_hidden_layers")):
        here = {name: i % period == offset for name, (period, offset) in at.items()}
        layers += ["attn" if here["attn"] else "mamba", "moe" if here["moe"] and experts > 1 else "mlp"]
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {name: block for name, block in blocks.items() if name in layers},
        "pattern": fold(tuple(layers)),
    }


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    name = "jamba"
    require_model(name, model)
    pairs_of(name, model, _MIXERS, _FEED_FORWARD, *parts.MOE_TRAINING, "dispatcher")
    layers = {kind: layers_of(model, kind) for kind in (*_MIXERS, *_FEED_FORWARD)}
    for i in range(len(model.layer_names)):
        _check(name, model, i, block_of(model, i))
    for i in layers["moe"] if layers["swiglu"] else ():
        width = block_of(model, layers["swiglu"][0]).inner_size
        if block_of(model, i).ffn_hidden_size != width:
            cannot_express(name, model, i, f"its experts are not as wide as the swiglu layers, {width}")
    theirs: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(model.layer_names) // 2,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        **_period(name, model, "attn", layers["attention"], layers["mamba1"]),
        **_period(name, model, "expert", [i - 1 for i in layers["moe"]], [i - 1 for i in layers["swiglu"]]),
        "num_experts": 1,
    }
    for kind, found in layers.items():
        if found:
            theirs |= _WRITE[kind](model, block_of(model, found[0]))
    return theirs


def _check(name: str, model: ModelConfig, layer: int, block: Any) -> None:
    """Raise UserError for values that no key of theirs has."""
    if block.type == "mamba1":
        state_space.whole_expand(name, model, layer)
        if block.inner_norm != "learned":
            cannot_express(name, model, layer, f"its inner_norm is {block.inner_norm}; expected learned")
        if block.inner_norm_eps not in (None, model.norm_eps):
            cannot_express(name, model, layer, f"its inner_norm_eps is not norm_eps of the model, {model.norm_eps:g}")
    elif block.type == "attention" and block.rotary_dim:
        cannot_express(name, model, layer, "it has rotary positions; expected rotary_fraction 0")
    elif block.type == "moe":
        if block.num_experts == 1:
            cannot_express(name, model, layer, "it has one expert; expected at least 2")
        if block.normalizes:
            cannot_express(name, model, layer, "it divides the chosen scores by their sum (normalize_top_k)")
        if block.balance == "bias":
            cannot_express(name, model, layer, "its choice sees a bias (balance bias)")


def _period(name: str, model: ModelConfig, key: str, at: list[int], others: list[int]) -> dict[str, int]:
    """Return period and offset of layers, given by the first of the two of ours that one of theirs is."""
    period, offset = len(model.layer_names) // 2 + 1, len(model.layer_names) // 2  # no layer of theirs
    if at:
        offset = at[0] // 2
        period = at[1] // 2 - offset if len(at) > 1 else max(period, offset + 1)
    expected = [i for i in sorted(at + others) if i // 2 % period == offset]
    for i in sorted(at + others):
        if (i in at) != (i in expected):
            layer = i if key == "attn" else i + 1
            cannot_express(
                name, model, layer, f"such layers come once in a period there, which is {period} by the first two"
            )
    return {f"{key}_layer_period": period, f"{key}_layer_offset": offset}


def _mamba(model: ModelConfig, block: Any) -> dict[str, Any]:
    return {
        "mamba_expand": int(block.expand),
        "mamba_d_state": block.state_dim,
        "mamba_dt_rank": block.step_rank,
        "mamba_d_conv": block.conv_kernel,
        "mamba_conv_bias": block.conv_bias,
        "mamba_proj_bias": block.proj_bias,
    }


def _attention(model: ModelConfig, block: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": block.num_heads, "num_key_value_heads": block.kv_heads}
    return heads | parts.head_dim_setting(model, block)


def _mlp(model: ModelConfig, block: Any) -> dict[str, Any]:
    return {"intermediate_size": block.inner_size}


def _moe(model: ModelConfig, block: Any) -> dict[str, Any]:
    widths = {"intermediate_size": block.ffn_hidden_size}
    return {**widths, "num_experts": block.num_experts, "num_experts_per_tok": block.top_k}


_WRITE = {"mamba1": _mamba, "attention": _attention, "swiglu": _mlp, "moe": _moe}


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "model.embed_tokens.weight", "model.final_layernorm.weight", "lm_head.weight")
    for i in range(len(model.layer_names) // 2):
        theirs, mixer, other = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        entries.append(Entry(f"{theirs}input_layernorm.weight", (f"{mixer}norm.weight",)))
        if block_of(model, 2 * i).type == "mamba1":
            entries += state_space.mamba1(f"{theirs}mamba.", f"{mixer}mixer.", shapes)
        else:
            entries += parts.attention(f"{theirs}self_attn.", f"{mixer}mixer.", shapes)
        entries.append(Entry(f"{theirs}pre_ff_layernorm.weight", (f"{other}norm.weight",)))
        theirs, other, block = f"{theirs}feed_forward.", f"{other}mixer.", block_of(model, 2 * i + 1)
        if block.type == "moe":
            entries.append(Entry(f"{theirs}router.weight", (f"{other}router_weight",)))
            entries += parts.experts(theirs, other, block.num_experts)
        else:
            entries += parts.swiglu(theirs, other)
    return entries + last


JAMBA = Architecture("jamba", "JambaForCausalLM", _to_ours, _to_theirs, _table)
