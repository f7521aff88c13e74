"""The `model` section of our config from Megatron-LM's arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.errors import UserError

# What changes a model's results, and the values for which we have layers; a missing argument has the first.
REQUIRED: dict[str, tuple[Any, ...]] = {
    "normalization": ("RMSNorm",),
    "apply_layernorm_1p": (False,),
    "qk_l2_norm": (False,),
    "multi_latent_attention": (False,),
    "mtp_num_layers": (None, 0),
    "rotary_interleaved": (False,),
    "use_rope_scaling": (False,),
    "rotary_seq_len_interpolation_factor": (None, 1),
    "no_rope_freq": (None,),
    "softmax_type": ("vanilla",),
    "softmax_scale": (None,),
    "window_attn_skip_freq": (None,),
    "experimental_attention_variant": (None,),
    "linear_attention_freq": (None,),
    "heterogeneous_layers_config_path": (None,),
    "heterogeneous_layers_config_encoded_json": (None,),
    "apply_residual_connection_post_layernorm": (False,),
    "glu_linear_offset": (0.0,),
    "activation_func_clamp_value": (None,),
    "quick_geglu": (False,),
    "moe_router_num_groups": (None,),
    "moe_expert_capacity_factor": (None,),
    "moe_apply_probs_on_input": (False,),
    "moe_latent_size": (None,),
}
LETTERS = {"M": "mamba", "*": "attn", "-": "mlp", "E": "moe"}  # of hybrid_override_pattern, and our names


class Arguments:
    """Megatron-LM's arguments by name; `file` is theirs, for messages."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values, self.file = values, file

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument, or the default where it is missing or None."""
        value = self.values.get(name)
        return default if value is None else value

    def refuse(self, name: str, expected: str) -> UserError:
        """Return the error for an argument's value."""
        return UserError(f"{self.file}: args.{name} = {self.values.get(name)!r}: expected {expected}")

    def need(self, name: str) -> Any:
        """Return an argument that has no default."""
        if self.values.get(name) is None:
            raise self.refuse(name, "a value")
        return self.values[name]


def model_section(values: Mapping[str, Any], file: str, vocab_size: int) -> dict[str, Any]:
    """Return the `model` section for Megatron-LM's arguments. Raises UserError for what our layers cannot be."""
    arguments = Arguments(values, file)
    for name, allowed in REQUIRED.items():
        if arguments.get(name, allowed[0]) not in allowed:
            expected = " or ".join(map(repr, allowed))
            raise arguments.refuse(name, f"{expected}, for which there are layers here")
    names = _layers(arguments)
    build = {"attn": _attention, "mamba": _mamba, "mlp": _feed_forward, "moe": _experts}
    return {
        "hidden_size": arguments.need("hidden_size"),
        "vocab_size": vocab_size,
        "norm_eps": arguments.get("norm_epsilon", 1e-5),
        "tie_embeddings": not arguments.get("untie_embeddings_and_output_weights", False),
        "init_std": arguments.get("init_method_std", 0.02),
        "blocks": {name: build[name](arguments) for name in dict.fromkeys(names)},
        "pattern": " ".join(names),
    }


def _layers(arguments: Arguments) -> list[str]:
    """Return the names of our layers, in order."""
    letters, count = arguments.get("hybrid_override_pattern"), arguments.need("num_layers")
    if letters is not None:
        unknown = set(letters) - set(LETTERS)
        if unknown or len(letters) != count:
            raise arguments.refuse("hybrid_override_pattern", f"{count} letters out of {' '.join(LETTERS)}")
        return [LETTERS[letter] for letter in letters]
    if arguments.get("is_hybrid_model", False) or arguments.get("hybrid_attention_ratio", 0.0):
        raise arguments.refuse("hybrid_override_pattern", "the letter of each layer")
    experts = [1] * count if arguments.get("num_experts") else [0] * count
    frequency = arguments.get("moe_layer_freq", 1)
    if any(experts):
        experts = [int(i % frequency == 0) for i in range(count)] if isinstance(frequency, int) else list(frequency)
    if len(experts) != count:
        raise arguments.refuse("moe_layer_freq", f"a number or a list of {count}")
    return [name for one in experts for name in ("attn", "moe" if one else "mlp")]


def _attention(arguments: Arguments) -> dict[str, Any]:
    heads, biased = arguments.need("num_attention_heads"), arguments.get("add_bias_linear", True)
    position = arguments.get("position_embedding_type", "learned_absolute")
    if position not in ("rope", "none"):
        raise arguments.refuse("position_embedding_type", "'rope' or 'none', for which there are layers here")
    grouped = arguments.get("group_query_attention", arguments.get("num_query_groups", 1) > 1)
    window = arguments.get("window_size")
    if window is not None and window[1] != 0:
        raise arguments.refuse("window_size", "(tokens before, 0)")
    return {
        "type": "attention",
        "num_heads": heads,
        "num_kv_heads": arguments.need("num_query_groups") if grouped else heads,
        "head_dim": arguments.get("kv_channels"),
        "window": window[0] + 1 if window is not None and window[0] >= 0 else None,
        "rotary_base": float(arguments.get("rotary_base", 10000)),
        "rotary_fraction": arguments.get("rotary_percent", 1.0) if position == "rope" else 0.0,
        "qk_norm": "head" if arguments.get("qk_layernorm", False) else "none",
        "gate": "element" if arguments.get("attention_output_gate", False) else "none",
        "qkv_bias": biased or arguments.get("add_qkv_bias", False),
        "proj_bias": biased,
    }


def _mamba(arguments: Arguments) -> dict[str, Any]:
    if arguments.get("norm_epsilon", 1e-5) != 1e-5:
        raise arguments.refuse("norm_epsilon", "1e-05, which megatron-core's Mamba layers always have inside")
    head_dim, hidden = arguments.get("mamba_head_dim", 64), arguments.need("hidden_size")
    heads = arguments.get("mamba_num_heads", 2 * hidden // head_dim)
    return {
        "type": "mamba2",
        "expand": heads * head_dim / hidden,
        "head_dim": head_dim,
        "state_dim": arguments.get("mamba_state_dim", 128),
        "num_groups": arguments.get("mamba_num_groups", 8),
    }


def _feed_forward(arguments: Arguments) -> dict[str, Any]:
    width, biased = arguments.need("ffn_hidden_size"), arguments.get("add_bias_linear", True)
    activation = _activation(arguments)
    if activation == "swiglu":
        if biased:
            raise arguments.refuse("add_bias_linear", "False with swiglu, which has no biases here")
        return {"type": "swiglu", "ffn_hidden_size": width}
    return {"type": "mlp", "ffn_hidden_size": width, "activation": activation, "bias": biased}


def _activation(arguments: Arguments) -> str:
    fused_gelu = arguments.get("add_bias_linear", True) and arguments.get("bias_gelu_fusion", False)
    if arguments.get("swiglu", False):
        return "swiglu"
    if arguments.get("squared_relu", False):
        return "relu2"
    if arguments.get("openai_gelu", False) or fused_gelu:
        return "gelu"
    raise arguments.refuse("openai_gelu", "True (gelu is its tanh form here), swiglu or squared_relu")


def _experts(arguments: Arguments) -> dict[str, Any]:
    if arguments.get("add_bias_linear", True):
        raise arguments.refuse("add_bias_linear", "False with experts")
    score, top_k = arguments.get("moe_router_score_function", "softmax"), arguments.get("moe_router_topk", 2)
    aux = arguments.get("moe_aux_loss_coeff", 0.0)
    if arguments.get("moe_router_load_balancing_type", "aux_loss") not in ("aux_loss", "seq_aux_loss"):
        aux = 0.0
    normalize = top_k > 1 if score == "sigmoid" else not arguments.get("moe_router_pre_softmax", False)
    return {
        "type": "moe",
        "num_experts": arguments.need("num_experts"),
        "top_k": top_k,
        "ffn_hidden_size": arguments.get("moe_ffn_hidden_size", arguments.get("ffn_hidden_size")),
        "shared_ffn_hidden_size": arguments.get("moe_shared_expert_intermediate_size", 0),
        "shared_gate": arguments.get("moe_shared_expert_gate", False),
        "activation": _activation(arguments),
        "score": score,
        "normalize_top_k": normalize,
        "scaling_factor": arguments.get("moe_router_topk_scaling_factor", 1.0),
        "balance": "bias" if arguments.get("moe_router_enable_expert_bias", False) else "aux" if aux else "none",
        "aux_loss": aux or None,
        "bias_update_rate": arguments.get("moe_router_bias_update_rate", 1e-3),
        "z_loss": arguments.get("moe_z_loss_coeff", 0.0),
    }
