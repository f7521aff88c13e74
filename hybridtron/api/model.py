"""Build a model with its initial values."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hybridtron.api.configs import Config, read_model_config
from hybridtron.model.initialize import initialize
from hybridtron.training.single_process import Model

if TYPE_CHECKING:
    import torch


def build_model(config: Config, *overrides: str, device: torch.device | str = "cpu") -> Model:
    """Build a model with its initial values.

    Args:
        config: a YAML file, a dict, or a pattern of layers such as `2*(mamba mlp) attn mlp`.
        overrides: `key=value`, such as `model.hidden_size=256`.
        device: where the model lies.

    Raises:
        UserError: one line for each key that is unknown, missing or impossible.
    """
    resolved = read_model_config(config, *overrides)
    model = Model(resolved, device)
    initialize(model, resolved.model, resolved.seed)
    return model
