"""Whether a run folder may be written to, and what is in it to continue from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.train.config import RunConfig
from hybridtron.train.run_folder import RunFolder, read_config, read_state

SPEED_KEYS = {"chunk_size"}  # change how a block is computed, not what


def find_checkpoint(folder: RunFolder, config: RunConfig, resume: bool) -> Path | None:
    """The checkpoint to continue from; None starts at step 0.

    Raises UserError when the folder exists and `resume` is false, cannot be written to, or holds a run that differs in
    what may not change, or that is past the config's last step.
    """
    folder.require_makeable()
    if not resume or not folder.config_file.is_file():
        folder.require_unused()
        return None
    was, now = _fixed(read_config(folder.path)), _fixed(config)
    for key in was.keys() | now.keys():
        if was.get(key) != now.get(key):
            raise UserError(
                f"{key} = {now.get(key)}: expected {was.get(key)} as in {folder.path}, since a resumed run keeps its "
                "architecture and its order of data"
            )
    checkpoint = folder.latest_checkpoint()
    if checkpoint and read_state(checkpoint).step > config.train.steps:
        raise UserError(
            f"train.steps = {config.train.steps}: expected at least {read_state(checkpoint).step}, as {checkpoint} has"
        )
    return checkpoint


def _fixed(config: RunConfig) -> dict[str, Any]:
    """What may not change when a run goes on: key -> value."""
    model = config.model
    flat: dict[str, Any] = {
        f"model.{key}": getattr(model, key) for key in ("hidden_size", "vocab_size", "tie_embeddings", "norm_eps")
    }
    flat["model.pattern"] = str(model.parsed_pattern)
    for name in sorted(set(model.layer_names)):
        for key, value in model.blocks[name].model_dump(exclude=SPEED_KEYS).items():
            flat[f"model.blocks.{name}.{key}"] = value
    return flat | {
        "precision.format": config.precision.format,
        "seed": config.seed,
        "data.seq_len": config.data.seq_len,
        "data.tokenizer": config.data.tokenizer,
        "train.global_batch_size": config.train.global_batch_size,
    }
