"""Declarations of every parameter of a model, by its name in the built module."""

from __future__ import annotations

from hybridtron.model.config import ModelConfig
from hybridtron.tensors import Init, PackedPart, TensorSpec


def has_experts(config: ModelConfig) -> bool:
    """Return whether a layer has experts, which under tensor parallelism need sequence parallelism too."""
    return any(spec.experts for spec in model_tensors(config).values())


def model_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Declare the parameters of the whole model by name; with tied embeddings the output projection has none."""
    vocabulary = (PackedPart("vocabulary", config.vocab_size, key="vocab_size"),)
    norm = TensorSpec((config.hidden_size,), Init("zeros" if config.zero_centered_norms else "ones"), decay=False)
    specs = {"embedding.weight": TensorSpec((config.vocab_size, config.hidden_size), Init("embedding"), vocabulary)}
    for i, name in enumerate(config.layer_names):
        specs[f"layers.{i}.norm.weight"] = norm
        for key, spec in config.blocks[name].tensors().items():
            specs[f"layers.{i}.mixer.{key}"] = spec
    specs["final_norm.weight"] = norm
    if not config.tie_embeddings:
        head = (config.vocab_size, config.hidden_size)
        specs["head.weight"] = TensorSpec(head, Init("input"), vocabulary, muon=False)
    return specs


GROUPS = ("embedding", "head", "norms")  # of parameters, beside the blocks


def parameter_group(config: ModelConfig, name: str) -> str:
    """Return the group of a parameter: embedding, head, norms (of layers and the end), or the name of its block."""
    first, *rest = name.split(".")
    if first != "layers":
        return "norms" if first == "final_norm" else first
    return "norms" if rest[1] == "norm" else config.layer_names[int(rest[0])]
