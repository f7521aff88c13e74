"""Configs for tests that build their own model."""

from __future__ import annotations

from typing import Any

from hybridtron.config.load import build
from hybridtron.training.config import RunConfig
from hybridtron.training.validation.resolve import resolve
from tests.conftest import TINY


def resolved_tiny(**model: Any) -> RunConfig:
    """The tiny run, whose data is never opened; keywords change its model section."""
    return resolve(
        build({**TINY, "model": {**TINY["model"], **model}, "data": {**TINY["data"], "train": "none"}}, RunConfig)
    )
