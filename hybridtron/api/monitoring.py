"""Look at runs from a Python session."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.files import as_path

if TYPE_CHECKING:
    from hybridtron.monitoring.compare.comparison import Comparison
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

    return read_runs(as_path(folder, "folder"))


def compare(*runs: str | Path, out: str | Path | None = None) -> Comparison:
    """Compare runs, finished or not: losses and their noise, costs, settings that differ; `print` shows tables.

    Args:
        runs: run folders.
        out: a folder for the report: a page, its pictures and result.json. None: no report is written.

    Raises:
        UserError: where a folder is no run folder, or `out` holds other files.
    """
    from hybridtron.monitoring.compare.comparison import read_comparison
    from hybridtron.monitoring.compare.report import write_report  # also registers how a comparison is printed
    from hybridtron.reporting.publish import require_usable

    if out is not None:
        require_usable(Path(out))
    comparison = read_comparison([as_path(run, "runs") for run in runs])
    if out is not None:
        write_report(comparison, Path(out))
    return comparison
