"""Our models of the values of Hugging Face models."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from hybridtron.backends.torch import TorchBackend
from hybridtron.config.load import build
from hybridtron.convert.architectures import ARCHITECTURES
from hybridtron.convert.mapping.settings import Settings
from hybridtron.model.config import ModelConfig
from hybridtron.model.language_model import LanguageModel
from tests.convert.families import read_folder, to_ours


def imported(theirs: nn.Module, folder: Path) -> LanguageModel:
    """Save their model and read it by the table of its architecture."""
    theirs.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[values["model_type"]]
    config = build(architecture.to_ours(Settings(values)), ModelConfig)
    return load(config, to_ours(config, architecture.table(config), read_folder(folder)))


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
    model = LanguageModel(config, TorchBackend(norm_eps=config.norm_eps))
    model.load_state_dict(state, strict=True)
    return model.eval()


def _outer(state: dict[str, Tensor], embedding: str, norm: str, head: str) -> dict[str, Tensor]:
    return {"embedding.weight": state[embedding], "final_norm.weight": state[norm], "head.weight": state[head]}
