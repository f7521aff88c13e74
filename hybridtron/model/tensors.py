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
    specs = {"embedding.weight": TensorSpec((config.vocab_size, config.hidden_size), Init("embedding"), vocabulary)}
    for i, name in enumerate(config.layer_names):
        if config.residual.has_norm(i):
            specs[f"layers.{i}.norm.weight"] = config.norm_spec
        for key, spec in config.residual.tensors(config, i).items():
            specs[f"layers.{i}.residual.{key}"] = spec
        for key, spec in config.blocks[name].tensors().items():
            specs[f"layers.{i}.mixer.{key}"] = spec
    for key, spec in config.residual.end_tensors(config).items():
        specs[f"residual_end.{key}"] = spec
    specs["final_norm.weight"] = config.norm_spec
    for module in range(config.mtp_modules):
        specs |= {f"mtp.{module}.{key}": spec for key, spec in mtp_tensors(config).items()}
    if not config.tie_embeddings:
        head = (config.vocab_size, config.hidden_size)
        specs["head.weight"] = TensorSpec(head, Init("input"), vocabulary, muon=False)
    return specs


def mtp_tensors(config: ModelConfig) -> dict[str, TensorSpec]:
    """Declare the parameters of a module for multi-token prediction, see `hybridtron.model.multi_token`."""
    width, norm = config.hidden_size, config.norm_spec
    specs = {"hidden_norm.weight": norm, "embedding_norm.weight": norm, "final_norm.weight": norm}
    specs["proj"] = TensorSpec((width, 2 * width), Init("input"))
    for i, name in enumerate(config.mtp_layer_names):
        specs[f"layers.{i}.norm.weight"] = norm
        specs |= {f"layers.{i}.mixer.{key}": spec for key, spec in config.blocks[name].tensors().items()}
    return specs


GROUPS = ("embedding", "head", "norms", "residual", "mtp")  # of parameters, beside the blocks


def parameter_group(config: ModelConfig, name: str) -> str:
    """Return the group of a parameter: embedding, head, norms (of layers and the end), residual (what mixes states of
    the residual topology), mtp, or the name of its block."""
    first, *rest = name.split(".")
    if first != "layers":
        return {"final_norm": "norms", "residual_end": "residual"}.get(first, first)
    index, owner, *rest = rest
    if owner == "norm" or (owner == "residual" and rest[0] == "norm"):
        return "norms"
    return "residual" if owner == "residual" else config.layer_names[int(index)]
