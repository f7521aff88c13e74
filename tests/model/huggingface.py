"""Our parameters from those of Hugging Face models of the same shape."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridtron.model.config import ModelConfig
from hybridtron.model.language_model import LanguageModel


def llama_state(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """A `LlamaForCausalLM` as `(attn mlp)` repeated: each of its layers is two of ours."""
    ours = _outer(state, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(num_layers):
        theirs = f"model.layers.{i}."
        attention, mlp = f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        ours[f"{attention}norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        qkv = [state[f"{theirs}self_attn.{name}_proj.weight"] for name in "qkv"]
        ours[f"{attention}mixer.qkv.weight"] = torch.cat(qkv)
        ours[f"{attention}mixer.proj.weight"] = state[f"{theirs}self_attn.o_proj.weight"]
        ours[f"{mlp}norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"]
        gate_up = [state[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        ours[f"{mlp}mixer.gate_up.weight"] = torch.cat(gate_up)
        ours[f"{mlp}mixer.down.weight"] = state[f"{theirs}mlp.down_proj.weight"]
    return ours


def mamba2_state(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """A `Mamba2ForCausalLM` as mamba2 repeated."""
    ours = _outer(state, "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
    for i in range(num_layers):
        ours |= mamba2_layer(state, f"backbone.layers.{i}.", f"layers.{i}.")
    return ours


def nemotron_h_state(state: dict[str, Tensor], kinds: str) -> dict[str, Tensor]:
    """A `NemotronHForCausalLM` with layers M (Mamba-2), * (attention) and - (MLP), one of ours for each of its."""
    ours = _outer(state, "model.embeddings.weight", "model.norm_f.weight", "lm_head.weight")
    for i, kind in enumerate(kinds):
        theirs, mine = f"model.layers.{i}.", f"layers.{i}."
        if kind == "M":
            ours |= mamba2_layer(state, theirs, mine)
            continue
        ours[f"{mine}norm.weight"] = state[f"{theirs}norm.weight"]
        if kind == "*":
            ours[f"{mine}mixer.qkv.weight"] = torch.cat([state[f"{theirs}mixer.{name}_proj.weight"] for name in "qkv"])
            ours[f"{mine}mixer.proj.weight"] = state[f"{theirs}mixer.o_proj.weight"]
        else:
            ours[f"{mine}mixer.up.weight"] = state[f"{theirs}mixer.up_proj.weight"]
            ours[f"{mine}mixer.down.weight"] = state[f"{theirs}mixer.down_proj.weight"]
    return ours


def mamba2_layer(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    """One Mamba-2 layer, named `theirs` over there and `ours` here."""
    return {
        f"{ours}norm.weight": state[f"{theirs}norm.weight"],
        f"{ours}mixer.in_proj.weight": state[f"{theirs}mixer.in_proj.weight"],
        f"{ours}mixer.conv_weight": state[f"{theirs}mixer.conv1d.weight"].squeeze(1),
        f"{ours}mixer.conv_bias": state[f"{theirs}mixer.conv1d.bias"],
        f"{ours}mixer.dt_bias": state[f"{theirs}mixer.dt_bias"],
        f"{ours}mixer.A_log": state[f"{theirs}mixer.A_log"],
        f"{ours}mixer.D": state[f"{theirs}mixer.D"],
        f"{ours}mixer.norm_weight": state[f"{theirs}mixer.norm.weight"],
        f"{ours}mixer.out_proj.weight": state[f"{theirs}mixer.out_proj.weight"],
    }


def mamba_state(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """A `MambaForCausalLM` as mamba1 repeated."""
    ours = _outer(state, "backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight")
    for i in range(num_layers):
        theirs, mine = f"backbone.layers.{i}.", f"layers.{i}."
        ours[f"{mine}norm.weight"] = state[f"{theirs}norm.weight"]
        for name, their_name in {
            "in_proj.weight": "in_proj.weight",
            "conv_bias": "conv1d.bias",
            "x_proj.weight": "x_proj.weight",
            "dt_weight": "dt_proj.weight",
            "dt_bias": "dt_proj.bias",
            "A_log": "A_log",
            "D": "D",
            "out_proj.weight": "out_proj.weight",
        }.items():
            ours[f"{mine}mixer.{name}"] = state[f"{theirs}mixer.{their_name}"]
        ours[f"{mine}mixer.conv_weight"] = state[f"{theirs}mixer.conv1d.weight"].squeeze(1)
    return ours


def qwen3_next_state(
    state: dict[str, Tensor], num_layers: int, heads: int, value_heads: int, key_dim: int, head_dim: int
) -> dict[str, Tensor]:
    """A `Qwen3NextForCausalLM` without attention or experts as `(gated_deltanet swiglu)` repeated.

    It interleaves its packed projections by key head, and its norms add one to their weights.
    """
    ours = _outer(state, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    ours["final_norm.weight"] = ours["final_norm.weight"] + 1
    share = value_heads // heads
    for i in range(num_layers):
        theirs, deltanet, mlp = f"model.layers.{i}.", f"layers.{2 * i}.", f"layers.{2 * i + 1}."
        ours[f"{deltanet}norm.weight"] = state[f"{theirs}input_layernorm.weight"] + 1
        ours[f"{mlp}norm.weight"] = state[f"{theirs}post_attention_layernorm.weight"] + 1
        sizes = [key_dim, key_dim, share * head_dim, share * head_dim]
        qkvz = state[f"{theirs}linear_attn.in_proj_qkvz.weight"].unflatten(0, (heads, -1)).split(sizes, 1)
        ba = state[f"{theirs}linear_attn.in_proj_ba.weight"].unflatten(0, (heads, -1)).split([share, share], 1)
        ours[f"{deltanet}mixer.in_proj.weight"] = torch.cat([part.flatten(0, 1) for part in (*qkvz, *ba)])
        ours[f"{deltanet}mixer.conv_weight"] = state[f"{theirs}linear_attn.conv1d.weight"].squeeze(1)
        for name in ("dt_bias", "A_log", "out_proj.weight"):
            ours[f"{deltanet}mixer.{name}"] = state[f"{theirs}linear_attn.{name}"]
        ours[f"{deltanet}mixer.norm_weight"] = state[f"{theirs}linear_attn.norm.weight"]
        ours[f"{mlp}mixer.gate_up.weight"] = torch.cat(
            [state[f"{theirs}mlp.{name}_proj.weight"] for name in ("gate", "up")]
        )
        ours[f"{mlp}mixer.down.weight"] = state[f"{theirs}mlp.down_proj.weight"]
    return ours


def gpt_oss_attention_state(state: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """The attention of a `GptOssForCausalLM` whose experts give nothing, as attention repeated."""
    ours = _outer(state, "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    for i in range(num_layers):
        theirs, mine = f"model.layers.{i}.", f"layers.{i}."
        ours[f"{mine}norm.weight"] = state[f"{theirs}input_layernorm.weight"]
        for kind in ("weight", "bias"):
            qkv = [state[f"{theirs}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            ours[f"{mine}mixer.qkv.{kind}"] = torch.cat(qkv)
        ours[f"{mine}mixer.sinks"] = state[f"{theirs}self_attn.sinks"]
        ours[f"{mine}mixer.proj.weight"] = state[f"{theirs}self_attn.o_proj.weight"]
    return ours


def load(config: ModelConfig, state: dict[str, Tensor]) -> LanguageModel:
    """Our model, on the torch backend, with exactly these parameters."""
    from hybridtron.backends.torch import TorchBackend

    model = LanguageModel(config, TorchBackend(norm_eps=config.norm_eps))
    model.load_state_dict(state, strict=True)
    return model.eval()


def _outer(state: dict[str, Tensor], embedding: str, norm: str, head: str) -> dict[str, Tensor]:
    return {"embedding.weight": state[embedding], "final_norm.weight": state[norm], "head.weight": state[head]}
