"""The models that are converted, as megatron-core builds them, and the arguments of Megatron-LM that say the same."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

VOCAB = 64
SEQ_LEN = 12


@dataclass(frozen=True)
class Case:
    """Settings of TransformerConfig, of the model's class, and what arguments Megatron-LM has for them."""

    config: dict[str, Any]
    model: dict[str, Any] = field(default_factory=dict)
    pattern: str | None = None  # of a MambaModel
    activation: str = "silu"
    metadata: dict[str, Any] = field(default_factory=dict)  # of the sharded state dict
    arguments: dict[str, Any] = field(default_factory=dict)


EXPERTS = {"num_moe_experts": 4, "moe_router_topk": 2, "moe_ffn_hidden_size": 24}
MAMBA = {"mamba_state_dim": 8, "mamba_head_dim": 8, "mamba_num_groups": 2}
ROPE = {"position_embedding_type": "rope"}
CASES = {
    # Grouped queries, a head size that is not hidden / heads, biases of qkv alone, norms of queries and keys, gates,
    # partial rotary positions.
    "grouped": Case(
        {
            "num_query_groups": 2,
            "kv_channels": 16,
            "add_qkv_bias": True,
            "qk_layernorm": True,
            "attention_output_gate": True,
        },
        {**ROPE, "rotary_percent": 0.5},
        arguments={"group_query_attention": True, "swiglu": True, "rotary_percent": 0.5},
    ),
    "biased": Case(
        {"add_bias_linear": True, "gated_linear_unit": False},
        {**ROPE, "share_embeddings_and_output_weights": True},
        activation="squared_relu",
        arguments={"squared_relu": True, "untie_embeddings_and_output_weights": False},
    ),
    "singletons": Case(
        EXPERTS, ROPE, metadata={"singleton_local_shards": True}, arguments={"num_experts": 4, "swiglu": True}
    ),
    "experts": Case(
        {
            **EXPERTS,
            "moe_layer_freq": [0, 1],
            "moe_router_score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "moe_router_topk_scaling_factor": 1.5,
            "moe_shared_expert_intermediate_size": 40,
        },
        ROPE,
        arguments={"num_experts": 4, "swiglu": True},
    ),
    "ungated experts": Case(
        {
            **EXPERTS,
            "gated_linear_unit": False,
            "moe_shared_expert_intermediate_size": 40,
            "moe_shared_expert_gate": True,
        },
        ROPE,
        activation="squared_relu",
        arguments={"num_experts": 4, "squared_relu": True},
    ),
    "hybrid": Case(
        {**EXPERTS, **MAMBA, "num_layers": 6, "is_hybrid_model": True, "num_query_groups": 2},
        pattern="M*M-E*",
        arguments={"num_experts": 4, "swiglu": True, "group_query_attention": True, "position_embedding_type": "none"},
    ),
}


def arguments(case: Case) -> dict[str, Any]:
    """What Megatron-LM writes into common.pt, as far as it says what the model is."""
    config = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "ffn_hidden_size": 48, **case.config}
    return {
        "normalization": "RMSNorm",
        "add_bias_linear": False,
        "untie_embeddings_and_output_weights": True,
        "position_embedding_type": "rope",
        "hybrid_override_pattern": case.pattern,
        **config,
        **case.arguments,
    }
