"""Find out what a path holds: a run, one of its checkpoints, or a folder or file of safetensors."""

from __future__ import annotations

from pathlib import Path

from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.safetensors import SafetensorsSource
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError
from hybridtron.training.run_folder.folder import RunFolder


def checkpoint_of(path: Path) -> Path | None:
    """Return the checkpoint at a path: the folder itself, or the latest of a run; None where it is neither.

    Raises UserError for a run without a checkpoint.
    """
    if (path / ".metadata").is_file():
        return path
    if not (path / "config.yaml").is_file():
        return None
    checkpoint = RunFolder(path).latest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{path}: holds no complete checkpoint yet")
    return checkpoint


def open_source(path: Path, verify: Verify = "full", optimizer: bool = False) -> CheckpointSource | SafetensorsSource:
    """Open the tensors at a path. Raises UserError where there are none, DamagedCheckpoint, OSError."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    checkpoint = checkpoint_of(path)
    if checkpoint is not None:
        return CheckpointSource(checkpoint, verify, optimizer)
    return SafetensorsSource(path)
