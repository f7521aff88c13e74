"""Small models of every architecture of Hugging Face that we convert: a row for each case that can fail by itself.

A row that is added here is tested in every way: logits, loss and gradients in one process and in two, export, settings.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridtron.backends.torch import TorchBackend
from hybridtron.checkpoint_reader import stored_as
from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.entry import Entry, assemble, check_complete, disassemble
from hybridtron.convert.mapping.parts import stored_shapes
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig
from hybridtron.model.language_model import LanguageModel
from hybridtron.model.tensors import model_tensors

BATCH, LENGTH = 2, 24


class Family(NamedTuple):
    """A case: the architecture's name here, and the arguments of its config class in transformers.

    `tokens` is how many of each sequence have a label: an even number, which two processes share.
    """

    architecture: str
    settings: dict[str, Any]
    tokens: int = LENGTH


_SMALL = {"vocab_size": 258, "hidden_size": 64, "num_hidden_layers": 2}
_LLAMA = {**_SMALL, "intermediate_size": 96, "num_attention_heads": 4}
_DELTANET = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
_QWEN3_NEXT = {**_LLAMA, **_DELTANET, "head_dim": 20, "linear_key_head_dim": 12, "linear_value_head_dim": 8}
_QWEN3_NEXT["partial_rotary_factor"] = 0.3
_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 28,
}
_OLMO_HYBRID = {
    **_LLAMA,
    **_DELTANET,
    "linear_key_head_dim": 12,
    "linear_value_head_dim": 6,
    "pad_token_id": None,
}
FAMILIES = {
    "llama": Family("llama", {**_LLAMA, "num_key_value_heads": 2, "rms_norm_eps": 1e-4}),
    "llama, biases, tied, wide heads": Family(
        "llama", {**_LLAMA, "attention_bias": True, "tie_word_embeddings": True, "head_dim": 24,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
    "llama, stretched as Llama 3.1": Family(
        "llama", {**_LLAMA, "rope_parameters": {"rope_type": "llama3", "rope_theta": 50.0, "factor": 8.0,
                  "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "mistral, stretched evenly": Family(
        "mistral", {**_LLAMA, "num_key_value_heads": 2,
                    "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.5}},
    ),
    "mistral, window": Family("mistral", {**_LLAMA, "num_key_value_heads": 2, "sliding_window": 7}),
    "mistral, odd heads": Family(
        "mistral", {**_LLAMA, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 20,
                    "sliding_window": None},
    ),
    "lfm2": Family(
        "lfm2", {**_LLAMA, "num_hidden_layers": 3, "num_key_value_heads": 2, "full_attn_idxs": [1], "vocab_size": 98,
                 "pad_token_id": None},
    ),
    "lfm2, biases, own head": Family(
        "lfm2", {**_LLAMA, "num_key_value_heads": 4, "full_attn_idxs": [0], "conv_bias": True, "conv_L_cache": 4,
                 "pad_token_id": None, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": False,
                 "norm_eps": 1e-3},
    ),
    "qwen3_next, dense": Family(
        "qwen3_next", {**_QWEN3_NEXT, "num_key_value_heads": 2, "full_attention_interval": 2, "vocab_size": 98,
                       "mlp_only_layers": [0, 1]},
    ),
    "qwen3_next, dense, biases, tied, all channels rotate": Family(
        "qwen3_next", {**_QWEN3_NEXT, "num_key_value_heads": 4, "layer_types": ["full_attention", "linear_attention"],
                       "attention_bias": True, "tie_word_embeddings": True, "num_experts": 0, "rms_norm_eps": 1e-3,
                       "linear_conv_kernel_dim": 3, "partial_rotary_factor": 1.0,
                       "linear_num_value_heads": 6},
    ),
    "qwen3_next, experts": Family(
        "qwen3_next", {**_QWEN3_NEXT, **_EXPERTS, "num_hidden_layers": 3, "num_key_value_heads": 2,
                       "full_attention_interval": 2, "mlp_only_layers": [1]},
    ),
    "qwen3_next, experts, not normalized": Family(
        "qwen3_next", {**_QWEN3_NEXT, **_EXPERTS, "num_key_value_heads": 2, "num_experts_per_tok": 3,
                       "norm_topk_prob": False, "full_attention_interval": 2},
    ),
    "olmo_hybrid": Family(
        "olmo_hybrid", {**_OLMO_HYBRID, "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-3,
                        "rope_parameters": {"rope_type": "default", "rope_theta": None}},
    ),
    "olmo_hybrid, rotary, biases, wide heads": Family(
        "olmo_hybrid", {**_OLMO_HYBRID, "attention_bias": True, "head_dim": 24, "linear_allow_neg_eigval": False,
                        "layer_types": ["full_attention", "linear_attention"], "tie_word_embeddings": True},
    ),
    "qwen3, windows": Family(
        "qwen3", {**_LLAMA, "num_key_value_heads": 2, "head_dim": 24, "use_sliding_window": True, "sliding_window": 7,
                  "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3, stretched by YaRN": Family(
        "qwen3", {**_LLAMA, "num_key_value_heads": 4, "head_dim": 24, "rope_parameters": {
                  "rope_type": "yarn", "rope_theta": 50.0, "factor": 4.0, "original_max_position_embeddings": 16}},
    ),
    "qwen3, biases": Family("qwen3", {**_LLAMA, "num_key_value_heads": 4, "head_dim": 12, "attention_bias": True}),
    "olmo2": Family(
        "olmo2", {**_LLAMA, "num_key_value_heads": 2, "pad_token_id": None, "vocab_size": 98,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ),
}  # fmt: skip
_BIASED = {"use_bias": True, "use_conv_bias": False}
_NEMOTRON_H = {
    "vocab_size": 258, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 24,
    "intermediate_size": 96, "mamba_num_heads": 6, "mamba_head_dim": 12, "ssm_state_size": 24, "n_groups": 2,
    "chunk_size": 8,
}  # fmt: skip
FAMILIES |= {
    "mamba": Family("mamba", {**_SMALL, "state_size": 8}),
    "mamba, biases, head": Family(
        "mamba", {**_SMALL, **_BIASED, "state_size": 6, "expand": 3, "time_step_rank": 5, "conv_kernel": 3,
                  "layer_norm_epsilon": 1e-4, "tie_word_embeddings": False},
    ),
    "falcon_mamba": Family("falcon_mamba", {**_SMALL, "state_size": 8, "mixer_rms_eps": 1e-3}),
    "mamba2": Family(
        "mamba2", {**_SMALL, "head_dim": 16, "num_heads": 8, "state_size": 24, "n_groups": 2, "chunk_size": 8},
    ),
    "mamba2, biases, limits, tied": Family(
        "mamba2", {**_SMALL, **_BIASED, "head_dim": 16, "num_heads": 12, "expand": 3, "state_size": 12, "n_groups": 4,
                   "chunk_size": 256, "time_step_limit": [0.02, 0.05], "tie_word_embeddings": True},
    ),
    "nemotron_h": Family(
        "nemotron_h", {**_NEMOTRON_H, "layers_block_type": ["linear_attention", "mlp", "full_attention", "mlp"]},
    ),
    "nemotron_h, biases, other activation": Family(
        "nemotron_h", {**_NEMOTRON_H, **_BIASED, "mlp_bias": True, "mlp_hidden_act": "gelu_pytorch_tanh",
                       "time_step_min": 0.05,
                       "layers_block_type": ["full_attention", "linear_attention", "linear_attention", "mlp"]},
    ),
    "nemotron_h, experts in groups and a latent space": Family(
        "nemotron_h", {**_NEMOTRON_H, "n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                       "moe_shared_expert_intermediate_size": 48, "moe_latent_size": 16, "n_group": 4, "topk_group": 2,
                       "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"]},
    ),
    "nemotron_h, experts": Family(
        "nemotron_h", {**_NEMOTRON_H, "n_routed_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
                       "moe_shared_expert_intermediate_size": 48, "routed_scaling_factor": 2.5,
                       "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe"]},
    ),
}  # fmt: skip
_PAIRS = {**_LLAMA, "num_key_value_heads": 2, "pad_token_id": None}  # a padding token has no gradient there
_MAMBA_BIASED = {"mamba_proj_bias": True, "mamba_conv_bias": False}
FAMILIES |= {
    "bamba": Family(
        "bamba", {**_PAIRS, "num_hidden_layers": 3, "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_n_groups": 2,
                  "mamba_d_state": 24, "mamba_chunk_size": 8},
    ),
    "bamba, biases, limits, tied, wide heads": Family(
        "bamba", {**_PAIRS, **_MAMBA_BIASED, "attn_layer_indices": [0], "mamba_n_heads": 12, "mamba_expand": 3,
                  "mamba_n_groups": 2, "mamba_d_state": 8, "attention_bias": True, "tie_word_embeddings": True,
                  "head_dim": 24, "time_step_limit": [0.3, 0.6],
                  "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}},
    ),
    "jamba": Family(
        "jamba", {**_PAIRS, "num_hidden_layers": 3, "attn_layer_period": 4, "attn_layer_offset": 2, "num_experts": 1,
                  "mamba_d_state": 8, "rms_norm_eps": 1e-4},
    ),
    "jamba, experts, biases, tied, wide heads": Family(
        "jamba", {**_PAIRS, **_MAMBA_BIASED, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1,
                  "num_experts": 4, "num_experts_per_tok": 2, "expert_layer_period": 2, "expert_layer_offset": 0,
                  "mamba_d_state": 6, "mamba_dt_rank": 5, "mamba_expand": 3, "mamba_d_conv": 3, "head_dim": 24,
                  "tie_word_embeddings": True},
    ),
}  # fmt: skip

_GRANITE = {**_PAIRS, "mamba_n_heads": 8, "mamba_n_groups": 2, "mamba_d_state": 24, "mamba_chunk_size": 8}
_GPT_OSS = {
    **_PAIRS, "intermediate_size": 20, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 24,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip
FAMILIES |= {
    "granitemoehybrid, dense, multipliers": Family(
        "granitemoehybrid", {**_GRANITE, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                             "num_hidden_layers": 3, "num_local_experts": 0, "shared_intermediate_size": 40,
                             "embedding_multiplier": 3.0, "residual_multiplier": 0.4, "logits_scaling": 2.0,
                             "attention_multiplier": 0.125, "tie_word_embeddings": True},
    ),
    "granitemoehybrid, experts, rotary, biases": Family(
        "granitemoehybrid", {**_GRANITE, **_MAMBA_BIASED, "layer_types": ["full_attention", "linear_attention"],
                             "num_local_experts": 6, "num_experts_per_tok": 3, "intermediate_size": 20,
                             "shared_intermediate_size": 24, "position_embedding_type": "rope",
                             "attention_multiplier": 0.3, "attention_bias": True, "logits_scaling": 4.0},
    ),
    "gpt_oss": Family("gpt_oss", {**_GPT_OSS, "sliding_window": 7}),
    "gpt_oss, stretched as published": Family("gpt_oss", {**_GPT_OSS, "rope_parameters": None}),
    "gpt_oss, all windows, narrow limit": Family(
        "gpt_oss", {**_GPT_OSS, "layer_types": ["sliding_attention", "sliding_attention"], "sliding_window": 5,
                    "swiglu_limit": 0.5, "swiglu_alpha": 2.0, "num_experts_per_tok": 3, "tie_word_embeddings": True},
    ),
}  # fmt: skip


class Theirs(NamedTuple):
    """A model of transformers with random values, and what it computes."""

    folder: Path  # of save_pretrained
    tokens: Tensor  # [b, s + 1]
    logits: Tensor  # [b, s, v]
    loss: float
    gradients: dict[str, Tensor]  # by the names of the folder


class Ours(NamedTuple):
    """Our model with the same values."""

    config: ModelConfig
    table: list[Entry]
    parameters: dict[str, Tensor]  # whole, by our names


def make_theirs(name: str, folder: Path) -> Theirs:
    """Build a model, give every parameter values that matter, and save it and its gradients."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family = FAMILIES[name]
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.architecture, **family.settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # norms of ones and biases of zeros hide errors
            parameter += 0.1 * torch.randn_like(parameter)
        for buffer in saved_buffers(model):
            buffer += 0.1 * torch.randn_like(buffer)
    model.save_pretrained(folder)
    tokens = torch.randint(model.config.vocab_size, (BATCH, family.tokens + 1))
    output = model(input_ids=tokens, labels=tokens)
    output.loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
        for buffer in saved_buffers(model):
            buffer.zero_()
    model.save_pretrained(folder / "gradients")
    return Theirs(folder, tokens, output.logits[:, :-1].detach(), output.loss.item(), read_folder(folder / "gradients"))


def saved_buffers(model: torch.nn.Module) -> list[Tensor]:
    """Return the tensors that a model saves and does not train, such as a bias that balances experts."""
    trained = dict(model.named_parameters(remove_duplicate=False))
    return [tensor for name, tensor in model.state_dict().items() if name not in trained]


@lru_cache(maxsize=64)
def read_folder(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a folder of save_pretrained, in the order of the file."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def make_ours(theirs: Theirs) -> Ours:
    """Read a folder into our parameters, by the architecture's table."""
    values = json.loads((theirs.folder / "config.json").read_text())
    architecture = ARCHITECTURES[values["model_type"]]
    settings = Settings(values)
    config = build(architecture.to_ours(settings), ModelConfig)
    settings.check_all_read()
    table = architecture.table(config)
    check_complete(table, stored_shapes(config))
    tensors = read_folder(theirs.folder)
    assert sorted(entry.name for entry in table) == sorted(tensors)
    return Ours(config, table, to_ours(config, table, tensors))


def to_ours(config: ModelConfig, table: list[Entry], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Put their tensors together as our whole parameters."""
    shapes = stored_shapes(config)
    stored = {key: torch.full(shape, torch.nan) for key, shape in shapes.items()}
    for entry in table:
        for part, box in zip(entry.parts, disassemble(entry, tensors[entry.name], shapes), strict=True):
            offsets, sizes = entry.box(shapes[part])
            stored[part][tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))] = box
    parameters = {}
    for name, spec in model_tensors(config).items():
        parts = [stored[key] for key, _ in stored_as(name, spec)]
        parameters[name] = torch.cat(parts, spec.axis) if len(parts) > 1 else parts[0]
    return parameters


def to_theirs(config: ModelConfig, table: list[Entry], parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Write our whole parameters under their names: the inverse of `to_ours`."""
    stored: dict[str, Tensor] = {}
    for name, spec in model_tensors(config).items():
        keys = stored_as(name, spec)
        sizes = [shape[spec.axis] for _, shape in keys]
        stored |= dict(zip([key for key, _ in keys], parameters[name].split(sizes, spec.axis), strict=True))
    shapes, found = stored_shapes(config), {}
    for entry in table:
        boxes = []
        for part in entry.parts:
            offsets, sizes = entry.box(shapes[part])
            at = tuple(slice(first, first + size) for first, size in zip(offsets, sizes, strict=True))
            boxes.append(stored[part][at])
        if entry.parts:
            found[entry.name] = assemble(entry, boxes)
    return found


def build_ours(ours: Ours) -> LanguageModel:
    """Build our model in this process, on the torch backend."""
    model = LanguageModel(ours.config, TorchBackend(norm_eps=ours.config.norm_eps))
    model.load_state_dict(ours.parameters)
    return model
