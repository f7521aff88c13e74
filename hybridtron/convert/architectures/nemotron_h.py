"""Nemotron-H: Mamba-2, attention without positions and feed-forward layers, in any order."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.architectures import parts, state_space
from hybridtron.convert.architectures.architecture import Architecture, Settings, cannot_express
from hybridtron.convert.architectures.expressing import layer_of, require_equal, require_model
from hybridtron.convert.mapping import Entry
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.pattern.fold import fold

_SMALLEST_STEP = 1e-30  # for 0, of which transformers takes the logarithm where it draws initial values
_ACTIVATIONS = {"relu2": "relu2", "silu": "silu", "relu": "relu", "gelu_pytorch_tanh": "gelu"}  # theirs -> ours
_BLOCKS = {  # names that config.json has had -> ours
    "linear_attention": "mamba", "mamba": "mamba", "M": "mamba",
    "full_attention": "attn", "attention": "attn", "*": "attn",
    "mlp": "mlp", "-": "mlp",
}  # fmt: skip
_THEIRS = {"mamba2": "linear_attention", "attention": "full_attention", "mlp": "mlp"}
# Of layers that are not there, of initial values, and ways to compute the same; the limits of step sizes that count are
# time_step_min and no upper one.
_IGNORED = """expand hidden_dropout mamba_proj_bias mamba_ssm_cache_dtype num_hidden_layers
    num_logits_to_keep rescale_prenorm_residual residual_in_fp32 rms_norm_eps rope_theta time_step_floor
    time_step_limit time_step_max time_step_rank use_mamba_kernels mtp_layers_block_type n_group n_routed_experts
    n_shared_experts moe_intermediate_size moe_latent_size moe_shared_expert_intermediate_size
    moe_shared_expert_overlap norm_topk_prob num_experts_per_tok output_router_logits routed_scaling_factor
    topk_group""".split()  # noqa: SIM905


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("mamba_hidden_act", "silu", default="silu")
    settings.require("mlp_hidden_act", *_ACTIVATIONS, default="relu2")
    for key in ("attention_bias", "tie_word_embeddings"):
        settings.require(key, False, default=False)
    settings.require("num_nextn_predict_layers", 0, default=0)
    settings.require("sliding_window", None)
    settings.ignore(*_IGNORED)
    layers = _layers(settings)
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
            "num_kv_heads": settings.get("num_key_value_heads", 8),
            "head_dim": settings.get("head_dim", 128),
            "rotary_fraction": 0.0,
        },
        "mlp": {
            "type": "mlp",
            "ffn_hidden_size": settings.get("intermediate_size", 21504),
            "activation": _ACTIVATIONS[settings.get("mlp_hidden_act", "relu2")],
            "bias": settings.get("mlp_bias", False),
        },
    }
    return {
        "hidden_size": hidden,
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "blocks": {name: block for name, block in blocks.items() if name in layers},
        "pattern": fold(layers),
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
    name = "nemotron_h"
    require_model(name, model)
    if model.tie_embeddings:
        raise UserError(f"{name} cannot express model.tie_embeddings: its output projection has weights of its own")
    for i in range(len(model.layer_names)):
        kind = state_space.block_of(model, i).type
        if kind == "attention":
            block = layer_of(name, model, i, kind, "num_heads", "num_kv_heads", "head_dim", "rotary_fraction")
            if block.rotary_dim:
                cannot_express(name, model, i, "it has rotary positions; expected rotary_fraction 0")
        elif kind == "mlp":
            layer_of(name, model, i, kind, "ffn_hidden_size", "activation", "bias")
        elif kind == "mamba2":
            layer_of(name, model, i, kind, "dt_limit_min", *state_space.MAMBA2_KEYS)
        else:
            cannot_express(name, model, i, "expected mamba2, attention or mlp")
    theirs: dict[str, Any] = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "layers_block_type": [_THEIRS[model.blocks[each].type] for each in model.layer_names],
        "layer_norm_epsilon": model.norm_eps,
        "tie_word_embeddings": False,
        "residual_in_fp32": False,
    }
    for kind, write in (("mamba2", _mamba), ("attention", _attention), ("mlp", _mlp)):
        if layers := state_space.layers_of(model, kind):
            require_equal(name, model, layers, "chunk_size")
            theirs |= write(state_space.block_of(model, layers[0]))
    return theirs


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
        else:
            names = [f"{way}{{}}.{what}" for way in ("up", "down") for what in ("weight", "bias")]
            renamed = {each.format("_proj"): each.format("") for each in names if ours + each.format("") in shapes}
            entries += parts.same(theirs, ours, renamed)
    return entries + last


NEMOTRON_H = Architecture("nemotron_h", "NemotronHForCausalLM", _to_ours, _to_theirs, _table)
