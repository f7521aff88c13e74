"""Look at runs from a Python session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hybridtron.monitoring.runs import Runs


def runs(folder: str | Path = "checkpoints") -> Runs:
    """Read the state, progress, restarts and effective time of the runs under a folder; `print` shows a table.

    Args:
        folder: one that holds run folders, also some levels below, or a run folder.

    Raises:
        UserError: where there is no such folder.
    """
    from hybridtron.monitoring import show  # noqa: F401  # registers how runs are printed
    from hybridtron.monitoring.runs import read_runs

    return read_runs(Path(folder))
