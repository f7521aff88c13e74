"""Builds the modules of a model's residual topology."""

from __future__ import annotations

import importlib
from typing import Any

from hybridtron.backends.base import Backend
from hybridtron.model.config import ModelConfig
from hybridtron.model.residual import plain


def residual_layer(config: ModelConfig, layer: int, backend: Backend) -> plain.Layer:
    """Build what layer number `layer` reads and writes by."""
    built: plain.Layer = _module(config).Layer(config, layer, backend)
    return built


def residual_end(config: ModelConfig, backend: Backend, last: bool) -> plain.End:
    """Build what stands before the first layer and after the last one; parameters only where that is (`last`)."""
    built: plain.End = _module(config).End(config, backend, last)
    return built


def _module(config: ModelConfig) -> Any:
    return importlib.import_module(f"hybridtron.model.residual.{config.residual.type}")
