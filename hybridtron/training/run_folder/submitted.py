"""What the launcher notes of a run's job on SLURM. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hybridtron.files import read_object

SUBMITTED = Path("launch", "submitted.json")  # in a run folder: the number of its job, and the folder of its output


def read_submitted(folder: Path) -> dict[str, Any]:
    """Return what the launcher noted of the run's job on SLURM; empty where it has none."""
    return read_object(folder / SUBMITTED)
