"""The run config that a verb is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridtron.training.config import RunConfig


def load_run_config(path: Path, overrides: Sequence[str]) -> RunConfig:
    """Read and resolve a run config. Raises UserError."""
    from hybridtron.config.load import load
    from hybridtron.training.config import RunConfig
    from hybridtron.training.validation.resolve import resolve

    return resolve(load(path, overrides, RunConfig))
