"""Megatron-LM's arguments for a model of ours, and the models that it cannot express."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hybridtron.convert.mapping.requirements import cannot_express, require_layer, require_model
from hybridtron.convert.megatron.from_arguments import LETTERS
from hybridtron.convert.megatron.table import CLASSES, Kind
from hybridtron.model.config import ModelConfig

# Keys that have an argument, by type of layer.
KEYS = {
    "attention": "num_heads num_kv_heads head_dim window rotary_base rotary_fraction qk_norm gate qkv_bias proj_bias",
    "mamba2": "expand head_dim state_dim num_groups",
    "mlp": "ffn_hidden_size activation bias",
    "swiglu": "ffn_hidden_size",
    "moe": "num_experts top_k ffn_hidden_size shared_ffn_hidden_size shared_gate activation score normalize_top_k "
    "scaling_factor balance aux_loss bias_update_rate z_loss",
}


class _Unfit(Exception):
    pass


def megatron_arguments(model: ModelConfig, kind: Kind) -> dict[str, Any]:
    """Return the arguments of Megatron-LM that build a model like ours.

    Raises UserError that names the first layer that does not fit, or the model's key.
    """
    architecture = f"megatron-core's {CLASSES[kind]}"
    require_model(architecture, model)
    arguments: dict[str, Any] = {
        "num_layers": len(model.layer_names) // (2 if kind == "gpt" else 1),
        "hidden_size": model.hidden_size,
        "num_attention_heads": 1,  # which megatron-core wants of models without attention too
        "padded_vocab_size": model.vocab_size,
        "untie_embeddings_and_output_weights": not model.tie_embeddings,
        "normalization": "RMSNorm",
        "norm_epsilon": model.norm_eps,
        "init_method_std": model.init_std,
        "add_bias_linear": False,
        "position_embedding_type": "none",
    }
    given: dict[str, Any] = {}
    for i, name in enumerate(model.layer_names):
        block_type = model.blocks[name].type
        if block_type not in KEYS:
            cannot_express(architecture, model, i, "it has no such layer")
        block = require_layer(architecture, model, i, block_type, *KEYS[block_type].split())
        try:
            _add(given, _ARGUMENTS[block_type](block, model))
        except _Unfit as why:
            cannot_express(architecture, model, i, str(why))
    return arguments | given | _arrangement(model, kind)


def _add(given: dict[str, Any], layer: dict[str, Any]) -> None:
    """Add a layer's arguments to those of the layers before it, which must agree: there is one set for all layers."""
    for name, value in layer.items():
        if given.setdefault(name, value) != value:
            raise _Unfit(f"its {name} is {value!r}, that of layers before it {given[name]!r}, and it has one for all")


def _attention(block: Any, model: ModelConfig) -> dict[str, Any]:
    if block.proj_bias and not block.qkv_bias:
        raise _Unfit("it has a bias on proj, and none on qkv")
    if block.qk_norm == "full" or block.gate == "head":
        raise _Unfit("there the norms of queries and keys are over each head, and gates have a value per channel")
    rotary = {"rotary_base": block.rotary_base, "rotary_percent": block.rotary_fraction}
    return {
        "num_attention_heads": block.num_heads,
        "group_query_attention": block.kv_heads != block.num_heads,
        "num_query_groups": block.kv_heads,
        "kv_channels": block.head_size,
        "add_bias_linear": block.proj_bias,
        "add_qkv_bias": block.qkv_bias,
        "qk_layernorm": block.qk_norm == "head",
        "attention_output_gate": block.gate == "element",
        "window_size": (block.window - 1, 0) if block.window else None,
        "position_embedding_type": "rope" if block.rotary_dim else "none",
        **(rotary if block.rotary_dim else {}),
    }


def _mamba(block: Any, model: ModelConfig) -> dict[str, Any]:
    if model.norm_eps != 1e-5:
        raise _Unfit(f"norm_eps is {model.norm_eps}, and inside Mamba layers it is 1e-05 there")
    return {
        "mamba_num_heads": block.num_heads,
        "mamba_head_dim": block.head_dim,
        "mamba_state_dim": block.state_dim,
        "mamba_num_groups": block.groups,
    }


def _feed_forward(block: Any, model: ModelConfig) -> dict[str, Any]:
    width = {"ffn_hidden_size": block.inner_size, "add_bias_linear": block.bias}
    return width | _activation(block.activation)


def _gated(block: Any, model: ModelConfig) -> dict[str, Any]:
    return {"ffn_hidden_size": block.inner_size, "add_bias_linear": False, **_activation("swiglu")}


def _activation(name: str) -> dict[str, Any]:
    """Return the arguments of an activation; openai_gelu is the tanh form of gelu."""
    arguments = {"swiglu": "swiglu", "gelu": "openai_gelu", "relu2": "squared_relu"}
    if name not in arguments:
        raise _Unfit(f"it has no argument for the activation {name}")
    return {argument: argument == arguments[name] for argument in arguments.values()}


def _experts(block: Any, model: ModelConfig) -> dict[str, Any]:
    if block.score not in ("softmax", "sigmoid"):
        raise _Unfit(f"its score is {block.score}")
    if block.score == "sigmoid" and block.normalizes != (block.top_k > 1):
        raise _Unfit("there the scores of several experts are divided by their sum where score is sigmoid")
    if block.balance == "bias" and block.score != "sigmoid":
        raise _Unfit("there balance = 'bias' needs score = 'sigmoid'")
    return {
        "num_experts": block.num_experts,
        "moe_router_topk": block.top_k,
        "moe_ffn_hidden_size": block.ffn_hidden_size,
        "moe_shared_expert_intermediate_size": block.shared_ffn_hidden_size or None,
        "moe_router_score_function": block.score,
        "moe_router_pre_softmax": block.score == "softmax" and not block.normalizes,
        "moe_router_topk_scaling_factor": block.scaling_factor if block.scaling_factor != 1 else None,
        "moe_router_load_balancing_type": "seq_aux_loss" if block.aux_weight else "none",
        "moe_aux_loss_coeff": block.aux_weight,
        "moe_z_loss_coeff": block.z_loss or None,
        "moe_router_bias_update_rate": block.bias_update_rate,
        "moe_router_enable_expert_bias": block.balance == "bias",
        "moe_shared_expert_gate": block.shared_gate,
        "add_bias_linear": False,
        **_activation(block.activation),
    }


_ARGUMENTS: dict[str, Callable[[Any, ModelConfig], dict[str, Any]]] = {
    "attention": _attention,
    "mamba2": _mamba,
    "mlp": _feed_forward,
    "swiglu": _gated,
    "moe": _experts,
}


def _arrangement(model: ModelConfig, kind: Kind) -> dict[str, Any]:
    """Return the arguments that say which layer comes where."""
    types = [model.blocks[name].type for name in model.layer_names]
    if kind == "mamba":
        letters = {"mamba": "mamba2", "attn": "attention", "moe": "moe"}
        by_type = {letters.get(name, name): letter for letter, name in LETTERS.items()} | {"swiglu": "-"}
        return {"is_hybrid_model": True, "hybrid_override_pattern": "".join(by_type[each] for each in types)}
    experts = [int(each == "moe") for each in types[1::2]]
    mixed = any(experts) and not all(experts)
    return {"moe_layer_freq": experts} if mixed else {}
