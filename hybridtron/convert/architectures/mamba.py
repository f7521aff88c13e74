"""Mamba and Falcon-Mamba, which norms dt, B and C without weights: layers of Mamba and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

from hybridtron.convert.mapping import state_space
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.layers import block_of
from hybridtron.convert.mapping.requirements import cannot_express, require_equal, require_layer, require_model
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig

# How initial values are drawn, and ways to compute the same.
_IGNORED = """residual_in_fp32 time_step_scale time_step_min time_step_max time_step_init_scheme
    time_step_floor rescale_prenorm_residual use_mambapy use_falcon_mambapy use_associative_scan
    fused_add_norm pad_vocab_size_multiple""".split()  # noqa: SIM905


def _to_ours(inner_norm: str, settings: Settings) -> dict[str, Any]:
    settings.require("hidden_act", "silu", default="silu")
    settings.ignore(*_IGNORED)
    rank, hidden = settings.get("time_step_rank", "auto"), settings.need("hidden_size")
    # Where it is there, transformers takes it in place of expand x hidden_size: Falcon-Mamba 7B has expand 16 and 8192.
    inner = settings.get("intermediate_size", settings.get("expand", 2) * hidden)
    for key, value in {"d_model": hidden, "d_inner": inner, "n_layer": settings.need("num_hidden_layers")}.items():
        settings.agree(key, value)
    settings.require("ssm_cfg", {}, None)
    settings.require("rms_norm", True, default=True)
    block = {
        "type": "mamba1",
        "expand": inner / hidden,
        "state_dim": settings.get("state_size", 16),
        "dt_rank": None if rank == "auto" else rank,
        "conv_kernel": settings.get("conv_kernel", 4),
        "conv_bias": settings.get("use_conv_bias", True),
        "proj_bias": settings.get("use_bias", False),
        "inner_norm": inner_norm,
    }
    if inner_norm != "none":
        block["inner_norm_eps"] = settings.get("mixer_rms_eps", 1e-6)
    return {
        "hidden_size": hidden,
        "vocab_size": settings.need("vocab_size"),
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "tie_embeddings": settings.get("tie_word_embeddings", True),
        "blocks": {"mamba": block},
        "pattern": f"{settings.need('num_hidden_layers')}*mamba",
    }


def _to_theirs(name: str, inner_norm: str, model: ModelConfig) -> dict[str, Any]:
    require_model(name, model)
    layers = range(len(model.layer_names))
    for i in layers:
        block = require_layer(name, model, i, "mamba1", "inner_norm", "inner_norm_eps", *state_space.MAMBA1_KEYS)
        if block.inner_norm != inner_norm:
            cannot_express(name, model, i, f"its inner_norm is {block.inner_norm}; expected {inner_norm}")
    require_equal(name, model, layers)
    block = block_of(model, 0)
    theirs = {
        "hidden_size": model.hidden_size,
        "vocab_size": model.vocab_size,
        "num_hidden_layers": len(layers),
        "expand": state_space.whole_expand(name, model, 0),
        "state_size": block.state_dim,
        "time_step_rank": block.step_rank,
        "conv_kernel": block.conv_kernel,
        "use_conv_bias": block.conv_bias,
        "use_bias": block.proj_bias,
        "hidden_act": "silu",
        "layer_norm_epsilon": model.norm_eps,
        "residual_in_fp32": False,
        "tie_word_embeddings": model.tie_embeddings,
    }
    return theirs if inner_norm == "none" else {**theirs, "mixer_rms_eps": block.inner_norm_eps or model.norm_eps}


def _table(model: ModelConfig) -> list[Entry]:
    return state_space.mamba_table(model, state_space.mamba1)


MAMBA = Architecture(
    "mamba", "MambaForCausalLM", partial(_to_ours, "none"), partial(_to_theirs, "mamba", "none"), _table
)
FALCON_MAMBA = Architecture(
    "falcon_mamba",
    "FalconMambaForCausalLM",
    partial(_to_ours, "plain"),
    partial(_to_theirs, "falcon_mamba", "plain"),
    _table,
)
