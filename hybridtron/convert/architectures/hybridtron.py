"""`HybridtronForCausalLM`: any model of ours, by its `model` section and under its own names."""

from __future__ import annotations

from typing import Any

from hybridtron.checkpoint_reader import stored_as
from hybridtron.convert.mapping.architecture import Architecture
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.mapping.settings import Settings
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.model.tensors import model_tensors


def _to_ours(settings: Settings) -> dict[str, Any]:
    section = settings.need("model")
    settings.ignore(*settings.values)
    if not isinstance(section, dict):
        raise UserError(f"{settings.file}: model = {section!r}: expected the `model` section of a config")
    return dict(section)


def _to_theirs(model: ModelConfig) -> dict[str, Any]:
    return {"model": model.model_dump(mode="json", serialize_as_any=True), "tie_word_embeddings": model.tie_embeddings}


def _table(model: ModelConfig) -> list[Entry]:
    return [
        Entry(f"model.{name}", tuple(key for key, _ in stored_as(name, spec)), spec.axis)
        for name, spec in model_tensors(model).items()
    ]


HYBRIDTRON = Architecture("hybridtron", "HybridtronForCausalLM", _to_ours, _to_theirs, _table)
