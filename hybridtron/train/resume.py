"""Whether a run folder may be written to, and what is in it to continue from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hybridtron.config.load import build
from hybridtron.errors import UserError
from hybridtron.model.config import ModelConfig
from hybridtron.train.config import RunConfig
from hybridtron.train.run_folder import RunFolder

SPEED_KEYS = {"chunk_size"}  # change how a block is computed, not what


def find_checkpoint(folder: RunFolder, config: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to continue from; None starts at step 0.

    Raises UserError when the folder exists and `resume` is false, or when it holds a run of another architecture.
    """
    if not resume:
        folder.require_unused()
        return None
    if not folder.config_file.is_file():
        folder.require_unused()
        return None
    saved = build(yaml.safe_load(folder.config_file.read_text()), RunConfig)
    was, now = _architecture(saved.model), _architecture(config.model)
    for key in was.keys() | now.keys():
        if was.get(key) != now.get(key):
            raise UserError(
                f"{key} = {now.get(key)}: expected {was.get(key)} as in {folder.path}, since a resumed run keeps its "
                "architecture"
            )
    return folder.latest_checkpoint()


def _architecture(model: ModelConfig) -> dict[str, Any]:
    """What may not change when a run goes on: key -> value."""
    flat: dict[str, Any] = {
        f"model.{key}": getattr(model, key) for key in ("hidden_size", "vocab_size", "tie_embeddings", "norm_eps")
    }
    flat["model.pattern"] = str(model.parsed_pattern)
    for name in sorted(set(model.layer_names)):
        for key, value in model.blocks[name].model_dump(exclude=SPEED_KEYS).items():
            flat[f"model.blocks.{name}.{key}"] = value
    return flat
