"""A decoder-only language model: embedding, pattern of layers, final norm, output projection."""

from __future__ import annotations

from torch import Tensor, nn

from hybridtron.backends.base import Backend
from hybridtron.mixers.contract import MixerConfig
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors


class Layer(nn.Module):
    """x + mixer(norm(x)), [s, b, h] -> [s, b, h]."""

    def __init__(self, block: MixerConfig, norm: nn.Module, backend: Backend) -> None:
        super().__init__()
        self.norm = norm
        self.mixer = block.build(backend)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mixer(self.norm(x))


class LanguageModel(nn.Module):
    """Parameters come uninitialised: see `hybridtron.model.initialize`."""

    def __init__(self, config: ModelConfig, backend: Backend) -> None:
        super().__init__()
        specs = model_tensors(config)
        self.embedding = backend.embedding(specs["embedding.weight"])
        self.layers = nn.ModuleList(
            Layer(config.blocks[name], backend.norm(specs[f"layers.{i}.norm.weight"]), backend)
            for i, name in enumerate(config.layer_names)
        )
        self.final_norm = backend.norm(specs["final_norm.weight"])
        self.tied = config.tie_embeddings
        head = specs["embedding.weight" if self.tied else "head.weight"]
        self.head = backend.column_linear(head, shared=self.tied)
        self.cross_entropy = backend.cross_entropy
        self.gather_logits = backend.gather_logits

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Token ids [b, s] -> logits [s, b, vocabulary of this rank].

        With labels, the ids that follow them [b, s]: loss and log partition function, each [s, b] in float32.
        """
        x = self.embedding(tokens)  # [s, b, h]
        for layer in self.layers:
            x = layer(x)
        logits = self.head(self.final_norm(x), self.embedding.weight if self.tied else None)
        return logits if labels is None else self.cross_entropy(logits, labels.transpose(0, 1))

    def logits(self, tokens: Tensor) -> Tensor:
        """Token ids [b, s] -> logits [b, s, vocabulary]."""
        return self.gather_logits(self(tokens)).transpose(0, 1)
