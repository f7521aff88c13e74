"""config.json of a model of ours."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from hybridtron.config.load import build
from hybridtron.model.config import ModelConfig


class HybridtronConfig(PreTrainedConfig):
    """Holds the `model` section of our config under the key `model`, and what transformers writes for itself.

    `documents` is data.documents of the run: isolate where packed documents were kept apart in training.
    """

    model_type = "hybridtron"

    model: dict[str, Any] | None = None
    documents: str = "flow"

    @property
    def section(self) -> ModelConfig:
        """Return the `model` section. Raises UserError for one that is none."""
        return build(self.model or {}, ModelConfig)

    @property
    def vocab_size(self) -> int:
        """Return the size of the embedding."""
        return self.section.vocab_size

    @property
    def hidden_size(self) -> int:
        """Return the width of the residual stream."""
        return self.section.hidden_size

    @property
    def num_hidden_layers(self) -> int:
        """Return the number of layers."""
        return len(self.section.layer_names)
