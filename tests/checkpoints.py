"""Checkpoints that tests change."""

from __future__ import annotations

from pathlib import Path

from hybridtron.distributed.checkpoint import manifest


def reseal(folder: Path) -> None:
    """Make the manifest of a checkpoint agree with its files, as whoever forges one would."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.name != manifest.NAME}
    manifest.write(folder, {name: manifest.file_of_bytes(content) for name, content in files.items()})
