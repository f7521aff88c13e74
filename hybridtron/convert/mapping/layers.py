"""Layers of a model, counted from 0, and their blocks."""

from __future__ import annotations

from typing import Any

from hybridtron.model.config import ModelConfig


def block_of(model: ModelConfig, layer: int) -> Any:
    """Return the block of a layer."""
    return model.blocks[model.layer_names[layer]]


def layers_of(model: ModelConfig, *types: str) -> list[int]:
    """Return the layers whose blocks are of these types."""
    return [i for i in range(len(model.layer_names)) if block_of(model, i).type in types]
