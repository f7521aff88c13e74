"""A study's folder: which runs are finished, which are missing, which failed and why.

    ablation.yaml   configs/NAME.yaml   cells/NAME/   failures.json
    results.csv     result.json         report.html   *.png

A run is finished when its summary is that of its last step. Its name holds a hash of its config and data, so that a
changed cell is another run; what is left of an earlier form of the study stays and is not counted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.ablations.cells import CellRun, Plan
from hybridtron.config.load import dump
from hybridtron.errors import UserError
from hybridtron.files import lock, open_to_write, read_object, replace_file
from hybridtron.training.run_folder.folder import RunFolder

CONFIG, CONFIGS, CELLS, FAILURES, LOCK = "ablation.yaml", "configs", "cells", "failures.json", ".lock"


@dataclass(frozen=True)
class Status:
    """State of the runs of a study, by name."""

    finished: Mapping[str, dict[str, Any]]  # summaries
    failed: Mapping[str, str]  # causes
    begun: frozenset[str]  # neither finished nor failed, with a folder

    def missing(self, plan: Plan) -> list[CellRun]:
        """Return the runs that are not finished, in the order of the plan."""
        return [run for run in plan.runs if run.name not in self.finished]


class Study:
    """The folder of a study, locked by this process from `open` to `close`."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.folder = plan, plan.config.study_folder

    def require_usable(self) -> None:
        """Raise UserError where the folder holds something else than a study."""
        if not self.folder.exists() and not self.folder.is_symlink():
            return
        if not self.folder.is_dir():
            raise UserError(f"study folder {self.folder}: is no folder; expected a new one, or that of a study")
        names = {path.name for path in self.folder.iterdir()} - {LOCK, f"{CONFIG}.new"}  # of one that begins
        if names and CONFIG not in names:
            raise UserError(
                f"study folder {self.folder}: holds something else ({min(names)}); expected a new folder, or that of a "
                "study"
            )

    def open(self) -> None:
        """Make and lock the folder, and write the study's config. Raises UserError where another process has it."""
        self.require_usable()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = open_to_write(self.folder / LOCK)
        except OSError as error:
            raise UserError(f"study folder {self.folder}: cannot be made: {error.strerror}") from None
        if not lock(self._lock):
            self._lock.close()
            raise UserError(f"study folder {self.folder}: another process runs it; expected one at a time")
        replace_file(self.folder / CONFIG, dump(self.plan.config))  # before all else, by which a study is known
        (self.folder / CONFIGS).mkdir(exist_ok=True)

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def config_file(self, run: CellRun) -> Path:
        """Write the resolved config of a run, if it is not there, and return its path."""
        file, text = self.folder / CONFIGS / f"{run.name}.yaml", dump(run.config.with_absolute_paths())
        if not file.is_file() or file.read_text() != text:
            replace_file(file, text)
        return file

    def status(self) -> Status:
        """Read which runs are finished, and why others failed."""
        finished, begun = {}, set()
        for run in self.plan.runs:
            folder = RunFolder(run.config.run_folder)
            if summary := folder.read_summary(run.config.train.steps):
                finished[run.name] = summary
            elif folder.config_file.is_file():
                begun.add(run.name)
        known = {run.name for run in self.plan.runs} - finished.keys()
        failed = {name: cause for name, cause in self._failures().items() if name in known}
        return Status(finished, failed, frozenset(begun - failed.keys()))

    def others(self) -> int:
        """Count the folders of runs that belong to an earlier form of the study."""
        names = {run.name for run in self.plan.runs}
        cells = self.folder / CELLS
        return sum(path.name not in names for path in cells.iterdir()) if cells.is_dir() else 0

    def record(self, name: str, cause: str | None) -> None:
        """Keep why a run failed; None: it is well, or has another try."""
        failures = self._failures()
        before = dict(failures)
        failures.pop(name, None)
        if cause is not None:
            failures[name] = cause
        if failures != before:
            replace_file(self.folder / FAILURES, json.dumps(failures, indent=2) + "\n")

    def _failures(self) -> dict[str, str]:
        return {name: str(cause) for name, cause in read_object(self.folder / FAILURES).items()}
