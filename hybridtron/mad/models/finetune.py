"""Trained layers under a fresh embedding and head: what can a checkpoint's weights do on the tasks?

`finetune` trains everything from there; `probe` keeps the layers as they are and trains embedding, final norm and head.
Layers keep their width and order. Experts are no longer balanced; the bias that a checkpoint's router has learned
stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from hybridtron.config.load import build
from hybridtron.mad.models.candidate import ConfigCandidate
from hybridtron.mad.models.layers import map_mixers
from hybridtron.mad.tasks.protocol import Task
from hybridtron.mixers.registry import MIXERS
from hybridtron.model.config import ModelConfig

Mode = Literal["finetune", "probe"]

_LAYERS = "layers."


@dataclass(frozen=True)
class TrainedLayers(ConfigCandidate):
    """`weights` are the trained parameters of the layers by name, in float32; `name` tells the mode too."""

    name: str
    pattern: str
    notes: tuple[str, ...]
    config: ModelConfig
    weights: dict[str, Tensor]
    mode: Mode
    identity: str

    def fingerprint(self) -> str:
        return self.identity

    def model(self, vocab_size: int, seq_len: int) -> ModelConfig:
        blocks = {name: map_mixers(block.model_dump(), _without_balance) for name, block in self.config.blocks.items()}
        mapping = self.config.model_dump() | {
            "blocks": blocks, "vocab_size": vocab_size, "tie_embeddings": False, "mtp": None,
            "backend": "torch",
        }  # fmt: skip
        return build(mapping, ModelConfig)

    def start(
        self, chosen: Task, vocab_size: int, seq_len: int, seed: int
    ) -> tuple[ModelConfig, dict[str, Tensor], dict[str, Tensor]]:
        model, values, _ = super().start(chosen, vocab_size, seq_len, seed)
        if self.mode == "finetune":
            return model, values | self.weights, {}
        fresh = {name: value for name, value in values.items() if not name.startswith(_LAYERS)}
        return model, fresh, dict(self.weights)


def from_trained(name: str, config: ModelConfig, parameters: Mapping[str, Tensor], mode: Mode) -> TrainedLayers:
    """Take the layers among all parameters of a trained model, by the names of `LanguageModel`."""
    weights = {key: value.detach().float().cpu() for key, value in parameters.items() if key.startswith(_LAYERS)}
    digest = hashlib.sha256(json.dumps([mode, config.identity()], sort_keys=True).encode())
    for key in sorted(weights):
        digest.update(key.encode())
        digest.update(weights[key].contiguous().numpy().tobytes())
    how = "all trainable" if mode == "finetune" else "frozen"
    notes = (f"{mode}: trained layers, {how}, under a fresh embedding and head",)
    pattern, identity = str(config.parsed_pattern), digest.hexdigest()[:12]
    return TrainedLayers(f"{name}, {mode}", pattern, notes, config, weights, mode, identity)


def _without_balance(block: dict[str, Any]) -> dict[str, Any]:
    """Return one mixer whose experts are no longer balanced; a bias that its router has learned stays."""
    changed = block | MIXERS[block["type"]].without_balance
    return changed | {"balance": "bias"} if block.get("balance") == "bias" else changed
