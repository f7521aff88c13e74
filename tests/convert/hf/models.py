"""Models of ours in the form of transformers, one for every primitive."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import hybridtron.convert.hf  # noqa: F401
from hybridtron.backends.torch import TorchBackend
from hybridtron.convert.hf import HybridtronConfig, HybridtronForCausalLM
from hybridtron.model.config import ModelConfig
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel
from tests.mixers.test_contract import CASES, model_config, noisy


def trained(config: ModelConfig, dtype: torch.dtype = torch.float32) -> LanguageModel:
    """A model as training has it, with weights away from their initial values."""
    model = LanguageModel(config, TorchBackend(dtype, norm_eps=config.norm_eps))
    initialize(model, config, seed=0)
    return noisy(model).eval()


def case(name: str, **changes: object) -> ModelConfig:
    """The model of a primitive between two channel mixers, so that its state is not the last to be read."""
    section = model_config(name).model_dump(mode="json")
    section["blocks"] = {"x": CASES[name], "mlp": {"type": "swiglu", "ffn_hidden_size": 48}}
    return ModelConfig.model_validate({**section, "pattern": "x mlp x", **changes})


def exported(model: LanguageModel, config: ModelConfig, folder: Path) -> HybridtronForCausalLM:
    """Write the folder as the export does, with tools of their own, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    HybridtronConfig(model=config.model_dump(mode="json"), architectures=["HybridtronForCausalLM"]).save_pretrained(
        folder
    )
    tensors = {f"model.{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return AutoModelForCausalLM.from_pretrained(folder)


def loaded(name: str, folder: Path, **changes: object) -> HybridtronForCausalLM:
    config = case(name, **changes)
    return exported(trained(config), config, folder)
