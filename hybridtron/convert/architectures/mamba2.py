"""Mamba-2: layers of Mamba-2 and nothing else."""

from __future__ import annotations

from typing import Any

from hybridtron.convert.mapping import state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.requirements import require_equal, require_layer, require_model
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig

# How initial values are drawn, and ways to compute the same.
_IGNORED = """residual_in_fp32 time_step_rank time_step_min time_step_max time_step_floor num_heads
    rescale_prenorm_residual""".split()  # noqa: SIM905


def _to_ours(settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.ignore(*_IGNORED)
    block = {
        "type": "mamba2",
        "expand": settings.get("expand", 2),
        "head_dim": settings.get("head_dim", 64),
        "state_dim": settings.get("state_size", 128),
        "num_groups": settings.get("n_groups", 8),
        "conv_kernel": settings.get("conv_kernel", 4),
        "conv_bias": settings.get("use_conv_bias", True),
        "proj_bias": settings.get("use_bias", False),
        "chunk_size": settings.get("chunk_size", 256),
        **state_space.step_limits(settings),
    }
    return {
        "hidden_size": settings.need("hidden_size"),
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": settings.get("tie_word_embeddings", False),
        "blocks": {"mamba": block},
        "pattern": f"{settings.need('num_hidden_layers')}*mamba",
    }


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    require_model("mamba2", model)
    layers = range(len(model.layer_names))
    for i in layers:
        require_layer("mamba2", model, i, "mamba2", "dt_limit_min", "dt_limit_max", *state_space.MAMBA2_KEYS)
    require_equal("mamba2", model, layers, "chunk_size")
    block = block_of(model, 0)
    return {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(layers),
        "expand": state_space.whole_expand("mamba2", model, 0),
        "num_heads": block.num_heads,
        "head_dim": block.head_dim,
        "state_size": block.state_dim,
        "n_groups": block.groups,
        "conv_kernel": block.conv_kernel,
        "use_conv_bias": block.conv_bias,
        "use_bias": block.proj_bias,
        "time_step_limit": list(block.dt_limit),
        "chunk_size": block.chunk_size,
        "hidden_act": "silu",
        "layer_norm_epsilon": model.norm_eps,
        "residual_in_fp32": False,
        "tie_word_embeddings": model.tie_embeddings,
    }


def _table(model: ModelConfig) -> list[Entry]:
    return state_space.mamba_table(model, state_space.mamba2)


MAMBA2 = Architecture("mamba2", "Mamba2ForCausalLM", _to_ours, _to_theirs, _table)
