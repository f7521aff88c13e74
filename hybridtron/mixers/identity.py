"""What of a block decides whether results are those of the same run: its keys, without later ones at their default.

A study, a search and MAD know results by a hash of the keys. A key that a type of block gets later must not part older
results, so at its default it is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.mixers.registry import MIXERS

# The keys that are part of the hash at their default too. Types that are not here came later: all their keys are.
FIRST_KEYS: dict[str, str] = {
    "attention": "norm_position num_heads num_kv_heads head_dim window rotary_base rotary_fraction softmax_scale "
    "rotary_scaling sinks qk_norm qk_norm_zero_centered gate qkv_bias proj_bias",
    "mla": "norm_position num_heads head_dim value_dim kv_rank q_rank rotary_dim rotary rotary_base",
    "linear_attention": "norm_position num_heads head_dim key_dim feature_map normalize shared_feature_map eps "
    "chunk_size",
    "gla": "norm_position num_heads expand_k expand_v gate_rank gate_divisor chunk_size",
    "gated_deltanet": "norm_position num_heads num_value_heads key_dim head_dim conv_kernel norm_eps allow_negative "
    "chunk_size",
    "mamba1": "norm_position expand state_dim dt_rank conv_kernel conv_bias proj_bias inner_norm inner_norm_eps",
    "mamba2": "norm_position expand head_dim state_dim num_groups conv_kernel conv_bias proj_bias dt_limit_min "
    "dt_limit_max chunk_size",
    "swiglu": "norm_position ffn_hidden_size",
    "mlp": "norm_position ffn_hidden_size activation bias",
    "moe": "norm_position num_experts top_k ffn_hidden_size shared_ffn_hidden_size shared_gate activation "
    "swiglu_alpha swiglu_limit bias score normalize_top_k scaling_factor balance aux_loss "
    "bias_update_rate z_loss capacity_factor dispatcher",
    "parallel": "norm_position branches merge",
    "short_conv": "norm_position conv_kernel bias",
    "hyena": "norm_position filter_order filter_embedding filter_layers filter_length expand projection_groups "
    "conv_kernel bias",
    "mh_hyena": "norm_position filter_order filter_embedding filter_layers filter_length expand projection_groups "
    "conv_kernel bias num_heads",
    "hyena_se": "norm_position num_groups conv_kernel filter_length",
    "hyena_mr": "norm_position num_groups conv_kernel filter_length",
    "hyena_li": "norm_position num_groups conv_kernel filter_order",
    "hyena_experts": "norm_position filter_order filter_embedding filter_layers filter_length num_experts top_k "
    "expert_size conv_kernel bias",
    "rwkv6": "norm_position head_dim mix_rank decay_rank chunk_size",
    "rwkv6_channel": "norm_position ffn_hidden_size",
}


def block_identity(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a block, `type` among them, that decide results; those of its branches likewise."""
    kept = {key: value for key, value in block.items() if not _is_later(block, key, value)}
    if "branches" in kept:
        kept["branches"] = [block_identity(branch) for branch in kept["branches"]]
    return kept


def _is_later(block: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether a key of a known type came later, and has its default."""
    first = FIRST_KEYS.get(block.get("type", ""))
    if first is None or key in ("type", "hidden_size", *first.split()):
        return False
    field = MIXERS[block["type"]].model_fields.get(key)
    return field is not None and value == field.get_default(call_default_factory=True)
