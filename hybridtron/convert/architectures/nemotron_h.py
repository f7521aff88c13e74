"""Nemotron-H: Mamba-2, attention without positions, feed-forward layers and mixtures of experts, in any order."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import parts, state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry, Shapes
from hybridtron.convert.mapping.layers import block_of, layers_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal, require_layer, require_model
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_SMALLEST_STEP = 1e-30  # for 0, of which transformers takes the logarithm where it draws initial values
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "relu": "relu", "gelu_pytorch_tanh": "gelu"}  # theirs -> ours
_BLOCKS = {  # names that config.json has had -> ours
    "linear_attention": "mamba", "mamba": "mamba", "M": "mamba",
    "full_attention": "attn", "attention": "attn", "*": "attn",
    "mlp": "mlp", "-": "mlp", "moe": "moe", "E": "moe",
}  # fmt: skip
_THEIRS = {"mamba2": "linear_attention", "attention": "full_attention", "mlp": "mlp", "moe": "moe"}
# Of layers that are not there, of initial values, and ways to compute the same; the limits of step sizes that count are
# time_step_min and no upper one.
_IGNORED = """expand hidden_dropout mamba_proj_bias mamba_ssm_cache_dtype num_hidden_layers num_logits_to_keep
    rescale_prenorm_residual residual_in_fp32 rms_norm_eps rope_theta time_step_floor time_step_limit time_step_max
    time_step_rank use_mamba_kernels mtp_layers_block_type n_shared_experts moe_shared_expert_overlap
    output_router_logits""".split()  # noqa: SIM905
_OF_EXPERTS = """n_group topk_group n_routed_experts num_experts_per_tok norm_topk_prob routed_scaling_factor
    moe_intermediate_size moe_shared_expert_intermediate_size moe_latent_size""".split()  # noqa: SIM905
# What of a mixture of experts changes only its training.
_TRAINING = ("aux_loss", "z_loss", "bias_update_rate")


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("mamba_hidden_act", "silu", default="silu")
    settings.require("mlp_hidden_act", *_ACTIVATIONS, default="relu2")
    for key in ("attention_bias", "tie_word_embeddings"):
        settings.require(key, False, default=False)
    settings.require("num_nextn_predict_layers", 0, default=0)
    settings.require("sliding_window", None)
    settings.ignore(*_IGNORED)
    layers = _layers(settings)
    if "moe" not in layers:
        settings.ignore(*_OF_EXPERTS)
    hidden = settings.need("hidden_size")
    heads, head_dim = settings.get("mamba_num_heads", 128), settings.get("mamba_head_dim", 64)
    blocks: dict[str, dict[str, Any]] = {
        "mamba": {
            "type": "mamba2",
            "expand": heads * head_dim / hidden,
            "head_dim": head_dim,
            "state_dim": settings.get("ssm_state_size", 128),
            "num_groups": settings.get("n_groups", 8),
            "conv_kernel": settings.get("conv_kernel", 4),
            "conv_bias": settings.get("use_conv_bias", True),
            "proj_bias": settings.get("use_bias", False),
            "chunk_size": settings.get("chunk_size", 128),
            "dt_limit_min": settings.get("time_step_min", 0.001),
        },
        "attn": {
            "type": "attention",
            "num_heads": settings.get("num_attention_heads", 32),
            "num_kv_heads": settings.get_or_null("num_key_value_heads", 8),
            "head_dim": settings.get("head_dim", 128),
            "rotary_fraction": 0.0,
        },
        "mlp": {
            "type": "mlp",
            "ffn_hidden_size": settings.get("intermediate_size", 21504),
            "activation": _ACTIVATIONS[settings.get("mlp_hidden_act", "relu2")],
            "bias": settings.get("mlp_bias", False),
        },
        "moe": _experts_of(settings) if "moe" in layers else {},
    }
    return {
        "hidden_size": hidden,
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "blocks": {name: block for name, block in blocks.items() if name in layers},
        "pattern": fold(layers),
    }


def _experts_of(settings: Settings) -> dict[str, Any]:
    """Return our block of a mixture of experts: ReLU-squared ones by default, chosen by sigmoids and a bias."""
    settings.require("mlp_bias", False, default=False)
    top_k, normalized = settings.get("num_experts_per_tok", 2), settings.get("norm_topk_prob", True)
    if top_k == 1:
        settings.require("norm_topk_prob", False, default=True)
    return {
        "type": "moe",
        "num_experts": settings.get("n_routed_experts", 8),
        "top_k": top_k,
        "ffn_hidden_size": settings.get("moe_intermediate_size", 7688),
        "shared_ffn_hidden_size": settings.get("moe_shared_expert_intermediate_size", 7688),
        "activation": _ACTIVATIONS[settings.get("mlp_hidden_act", "relu2")],
        "latent_size": settings.get_or_null("moe_latent_size", None) or 0,
        "num_groups": settings.get("n_group", 1),
        "top_groups": settings.get("topk_group", 1),
        "score": "sigmoid",
        "normalize_top_k": normalized,
        "scaling_factor": settings.get("routed_scaling_factor", 1.0),
        "balance": "bias",
    }


def _layers(settings: Settings) -> tuple[str, ...]:
    """Return our name of each layer, from either of the two forms that config.json has had."""
    pattern = settings.get("hybrid_override_pattern")
    key = "layers_block_type" if "layers_block_type" in settings.values else "hybrid_override_pattern"
    kinds = settings.get("layers_block_type") or pattern
    if not kinds:
        raise UserError(f"{settings.file}: layers_block_type is missing")
    for i, kind in enumerate(kinds):
        if kind not in _BLOCKS:
            raise UserError(f"{settings.file}: layer {i} of {key} is {kind!r}: there are no such layers here")
    return tuple(_BLOCKS[kind] for kind in kinds)


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    require_model("nemotron_h", model)
    if model.tie_embeddings:
        raise UserError("nemotron_h cannot express model.tie_embeddings: its output projection has weights of its own")
    for i in range(len(model.layer_names)):
        _check(model, i, block_of(model, i).type)
    theirs: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "layers_block_type": [_THEIRS[model.blocks[each].type] for each in model.layer_names],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": False,
        "residual_in_fp32": False,
    }
    for kind, write in (("mamba2", _mamba), ("attention", _attention), ("moe", _moe), ("mlp", _mlp)):
        if layers := layers_of(model, kind):
            require_equal("nemotron_h", model, layers, "chunk_size", "dispatcher", *_TRAINING)
            theirs |= write(block_of(model, layers[0]))
    return theirs


_KEYS = {
    "mamba2": ("dt_limit_min", *state_space.MAMBA2_KEYS),
    "attention": ("num_heads", "num_kv_heads", "head_dim", "rotary_fraction"),
    "mlp": ("ffn_hidden_size", "activation", "bias"),
    "moe": ("num_experts", "top_k", "ffn_hidden_size", "shared_ffn_hidden_size", "activation", "score",
            "normalize_top_k", "scaling_factor", "balance", "latent_size", "num_groups", "top_groups", *_TRAINING),
}  # fmt: skip


def _check(model: ModelConfig, layer: int, kind: str) -> None:
    """Raise UserError where the architecture does not have this layer."""
    name = "nemotron_h"
    if kind not in _KEYS:
        cannot_express(name, model, layer, f"expected one of {', '.join(_KEYS)}")
    block = require_layer(name, model, layer, kind, *_KEYS[kind])
    if kind == "attention" and block.rotary_dim:
        cannot_express(name, model, layer, "it has rotary positions; expected rotary_fraction 0")
    if kind in ("mlp", "moe"):
        if block.activation not in _ACTIVATIONS.values():
            cannot_express(name, model, layer, f"its activation is {block.activation}")
        for other in layers_of(model, "mlp", "moe"):
            if other < layer and block_of(model, other).activation != block.activation:
                cannot_express(name, model, layer, f"its activation is not that of layer {other}")
    if kind == "moe":
        if block.score != "sigmoid" or block.balance != "bias":
            cannot_express(name, model, layer, "expected score sigmoid and balance bias")
        if not block.shared_ffn_hidden_size or block.num_experts == 1:
            cannot_express(name, model, layer, "expected a shared expert beside two others or more")
        if any(block_of(model, other).bias for other in layers_of(model, "mlp")):
            cannot_express(name, model, layer, "it has no biases; expected those of the mlp layers")


def _mamba(block: Any) -> dict[str, Any]:
    smallest = block.dt_limit_min or _SMALLEST_STEP
    return {
        "mamba_num_heads": block.num_heads,
        "mamba_head_dim": block.head_dim,
        "ssm_state_size": block.state_dim,
        "n_groups": block.groups,
        "conv_kernel": block.conv_kernel,
        "use_conv_bias": block.conv_bias,
        "use_bias": block.proj_bias,
        "mamba_proj_bias": block.proj_bias,
        "mamba_hidden_act": "silu",
        "expand": max(1, round(block.expand)),
        "chunk_size": block.chunk_size,
        "time_step_min": smallest,
        "time_step_limit": [smallest, float("inf")],
    }


def _attention(block: Any) -> dict[str, Any]:
    heads = {"num_attention_heads": block.num_heads, "num_key_value_heads": block.kv_heads}
    return {**heads, "head_dim": block.head_size, "attention_bias": False}


def _mlp(block: Any) -> dict[str, Any]:
    (activation,) = (theirs for theirs, ours in _ACTIVATIONS.items() if ours == block.activation)
    return {"intermediate_size": block.inner_size, "mlp_hidden_act": activation, "mlp_bias": block.bias}


def _moe(block: Any) -> dict[str, Any]:
    (activation,) = (theirs for theirs, ours in _ACTIVATIONS.items() if ours == block.activation)
    return {
        "n_routed_experts": block.num_experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": block.top_k,
        "moe_intermediate_size": block.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": block.shared_ffn_hidden_size,
        "mlp_hidden_act": activation,
        "norm_topk_prob": block.normalizes,
        "routed_scaling_factor": block.scaling_factor,
        **({"moe_latent_size": block.latent_size} if block.latent_size else {}),
        "n_group": block.num_groups,
        "topk_group": block.top_groups,
        "mlp_bias": False,
    }


def _table(model: ModelConfig) -> list[Entry]:
    shapes = parts.stored_shapes(model)
    entries, last = parts.outer(model, "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
    for i, name in enumerate(model.layer_names):
        theirs, ours, kind = f"backbone.layers.{i}.", f"layers.{i}.", model.blocks[name].type
        entries.append(Entry(f"{theirs}norm.weight", (f"{ours}norm.weight",)))
        theirs, ours = f"{theirs}mixer.", f"{ours}mixer."
        if kind == "mamba2":
            entries += state_space.mamba2(theirs, ours, shapes)
        elif kind == "attention":
            entries += parts.attention(theirs, ours, shapes)
        elif kind == "moe":
            entries += _experts(theirs, ours, model.blocks[name])
        else:
            entries += _feed_forward(theirs, ours, shapes)
    return entries + last


def _feed_forward(theirs: str, ours: str, shapes: Shapes) -> list[Entry]:
    names = [(way, what) for way in ("up", "down") for what in ("weight", "bias") if f"{ours}{way}.{what}" in shapes]
    return parts.same(theirs, ours, {f"{way}_proj.{what}": f"{way}.{what}" for way, what in names})


def _experts(theirs: str, ours: str, block: Any) -> list[Entry]:
    names = {"gate.weight": "router_weight", "gate.e_score_correction_bias": "router_bias"}
    shared = {f"shared_experts.{way}_proj.weight": f"shared.{way}.weight" for way in ("up", "down")}
    latent = {f"fc{i}_latent_proj.weight": f"latent_{way}" for i, way in ((1, "down"), (2, "up")) if block.latent_size}
    entries = parts.same(theirs, ours, names | shared | latent)
    for expert in range(block.num_experts):
        each = f"{theirs}experts.{expert}."
        entries += [Entry(f"{each}{way}_proj.weight", (ours + way,), expert=expert) for way in ("up", "down")]
    return entries


NEMOTRON_H = Architecture("nemotron_h", "NemotronHForCausalLM", _to_ours, _to_theirs, _table)
