"""Read what a user gives as a config: a file, a dict, a pattern, or a config."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridtron.config.load import load
from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError
from hybridtron.mad.models.layers import blocks_by_pattern_name, mad_lab_names
from hybridtron.model.config import ModelConfig
from hybridtron.pattern import PatternError, parse
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import read_run_config
from hybridtron.training.validation.resolve import resolve

Config = str | os.PathLike[str] | Mapping[str, Any] | RunConfig
"""A YAML file, a run folder, a dict with the keys of a run's config, or a config; where only the model matters also a
pattern of layers."""

_WIDTH = 128
_SHORT_NAMES: dict[str, dict[str, Any]] = {
    "attn": {"type": "attention", "num_heads": 4},
    "mamba": {"type": "mamba2", "head_dim": 32, "state_dim": 32},
    "mlp": {"type": "swiglu", "ffn_hidden_size": 352},
}
_DEFAULTS: dict[str, Any] = {
    "name": "model",
    "data": {"train": "stdlib", "seq_len": 256},
    "train": {"steps": 1, "global_batch_size": 1},
    "optimizer": {"lr": 1e-3},
}


def read_training_config(config: Config, *overrides: str) -> RunConfig:
    """Read a complete config with `key=value` overrides: a file, a dict, a run folder or a checkpoint in one.

    Raises:
        UserError: one line for each key that is unknown, missing or impossible.
    """
    _check_types(config, overrides)
    if isinstance(config, str) and not _is_file(config):
        raise UserError(f"config = {config!r}: no such file; expected a YAML file or a dict with all sections of a run")
    if isinstance(config, str | os.PathLike) and Path(config).is_dir():
        config = read_run_config(Path(config))[0]
    if isinstance(config, RunConfig):
        return resolve(load(config.model_dump(mode="json", serialize_as_any=True), overrides, RunConfig))
    return resolve(load(config, overrides, RunConfig))


def read_model_config(config: Config, *overrides: str) -> RunConfig:
    """Read a config of which only the model matters; sections that a dict or a pattern lacks take defaults.

    A dict may hold the `model` section alone, or its keys. A pattern names blocks of width 128: `attn` (4 heads),
    `mamba` (Mamba-2), `mlp` (SwiGLU), every other primitive by its type, and the layers of MAD. (In MAD itself
    `mamba` is Mamba-1 and `mlp` a plain MLP, as in mad-lab.)

    Raises:
        UserError: as `read_training_config` does.
    """
    _check_types(config, overrides)
    if isinstance(config, str) and _is_pattern(config):
        config = {"model": _model_of_pattern(config)}
    if isinstance(config, Mapping):
        config = _merged(_DEFAULTS, {"model": config} if _is_model_section(config) else config)
    return read_training_config(config, *overrides)


def _check_types(config: Any, overrides: Sequence[Any]) -> None:
    if not isinstance(config, str | os.PathLike | Mapping | RunConfig):
        raise UserError(f"config = {type(config).__name__}: expected a YAML file, a dict, a pattern or a config")
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(f"override {override!r}: expected text, key=value")


def _is_file(text: str) -> bool:
    """Return whether text names a file, whether it exists or not, or a folder that there is."""
    return _looks_like_path(text) or (0 < len(text) < 256 and Path(text).exists())


def _looks_like_path(text: str) -> bool:
    """Return whether text can be nothing but a path; no pattern has a slash."""
    return "/" in text or text.endswith((".yaml", ".yml", ".json"))


def _is_pattern(text: str) -> bool:
    """Return whether text is a pattern. One that a run folder bears as its name is not; that of another path is."""
    if not _is_file(text):
        return True
    if _looks_like_path(text) or (Path(text) / "config.yaml").exists():
        return False
    try:
        _model_of_pattern(text)
    except PatternError:
        return False
    return True


def _is_model_section(config: Mapping[str, Any]) -> bool:
    """Return whether a dict has keys of the `model` section, misspelt or not, and none of a run's config."""
    run, model = RunConfig.model_fields, ModelConfig.model_fields
    return not config.keys() & run.keys() and any(nearest(str(key), [*run, *model]) in model for key in config)


def _model_of_pattern(pattern: str) -> dict[str, Any]:
    blocks = blocks_by_pattern_name(match_mad_lab=False)
    blocks |= {ours: blocks[theirs] for ours, theirs in mad_lab_names().items()} | _SHORT_NAMES
    parsed = parse(pattern.replace("-", "_"), known_names=list(blocks))
    return {
        "hidden_size": _WIDTH,
        "tie_embeddings": True,
        "pattern": str(parsed),
        "blocks": {name: dict(blocks[name]) for name in parsed.counts()},
    }


def _merged(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lower` with the sections and keys of `upper` over it."""
    merged = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = {**merged[key], **value} if both else value
    return merged
