"""The runs under a folder, each with its state, progress and effective time. Imports no torch."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hybridtron.errors import UserError, cause_of
from hybridtron.files import read_last_row, read_object, read_plain
from hybridtron.monitoring.queue import queued_jobs
from hybridtron.monitoring.state import DEAD, FAILED, RUNNING, state_of
from hybridtron.reporting.numbers import duration
from hybridtron.reporting.shown import Shown
from hybridtron.training.run_folder.attempts import Attempt, read_attempts
from hybridtron.training.run_folder.effective_time import effective_time_so_far
from hybridtron.training.run_folder.missing import missing_run
from hybridtron.training.run_folder.submitted import SUBMITTED, read_submitted
from hybridtron.training.run_folder.unrecorded_end import end_without_result

DEPTH = 3  # folders below the one that is searched
MARKS = ("config.yaml", "metrics.jsonl", "attempts.jsonl", "launch/job.json")  # any of them makes a run folder
SILENT_SECONDS = 600  # without a row, after which that is noted
UNKNOWN = "unknown"


@dataclass
class RunStatus:
    """One run. What is not known is None; `notes` name what is damaged, or how it ended."""

    name: str
    folder: str
    state: str = UNKNOWN
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    tokens_per_s: float | None = None
    seconds_left: float | None = None
    attempts: int = 0
    restarts: int = 0
    lost_steps: int = 0
    effective: float | None = None  # share of the time, from 0 to 1
    suggested_save_every: int | None = None
    updated: float | None = None  # time of the last row of metrics.jsonl, in seconds since the epoch
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Runs(Shown):
    """The runs under a folder; `print` shows them as a table."""

    folder: Path
    runs: list[RunStatus]

    def as_json(self) -> dict[str, Any]:
        """Return the rows for programs."""
        return {"folder": str(self.folder), "runs": [asdict(run) for run in self.runs]}


def read_runs(folder: Path) -> Runs:
    """Read the state of all runs in a folder, or of the one whose folder it is. Raises UserError where it is none."""
    if not folder.is_dir():
        raise missing_run(folder, "a folder with runs")
    found = find_run_folders(folder)
    submitted = {path: read_submitted(path) for path in found}  # before the queue is asked
    jobs = queued_jobs()
    names = {path: folder.name if path == folder else str(path.relative_to(folder)) for path in found}
    return Runs(folder, [read_status(path, name, jobs, submitted[path]) for path, name in names.items()])


def find_run_folders(folder: Path, depth: int = DEPTH) -> list[Path]:
    """Return the run folders in a folder, sorted, not looking into them; the folder itself if it is one."""
    if any((folder / mark).exists() for mark in MARKS):
        return [folder]
    if not depth:
        return []
    try:
        inner = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.is_dir())
    except OSError:
        return []
    return [found for path in inner for found in find_run_folders(path, depth - 1)]


def require_run(folder: Path) -> None:
    """Raise UserError for a path that is no run folder, with runs that may be meant."""
    if any((folder / mark).exists() for mark in MARKS):
        return
    if not folder.is_dir():
        raise missing_run(folder, "a run folder")
    inside = find_run_folders(folder)
    raise UserError(
        f"{folder}: no run folder; expected one"
        + (f" of those in it, such as {inside[0]}" if inside else " with config.yaml, which training writes")
    )


def read_status(
    folder: Path, name: str, jobs: Mapping[str, str] | None, submitted: Mapping[str, Any] | None = None
) -> RunStatus:
    """Read what is known of a run; what cannot be read is noted and left out. Of the arguments see `state_of`."""
    submitted = read_submitted(folder) if submitted is None else submitted
    run = RunStatus(name, str(folder))
    config = read_raw_config(folder, run.notes)
    run.steps = _positive(_section(config, "train").get("steps"))
    row: dict[str, Any] = {}
    attempts: list[Attempt] = []
    try:
        row = read_last_row(folder / "metrics.jsonl") or {}
        if not row and os.path.lexists(folder / "metrics.jsonl") and (folder / "metrics.jsonl").stat().st_size:
            run.notes.append("metrics.jsonl: damaged: no row can be read")
    except (OSError, UserError) as error:
        run.notes.append(f"metrics.jsonl: {_reason(error)}")
    try:
        attempts = read_attempts(folder)
        _add_effective_time(run, folder, config, attempts)
    except (OSError, UserError) as error:
        run.notes.append(f"attempts.jsonl: {_reason(error)}")
    _add_progress(run, row)
    try:
        reported = read_object(folder / "summary.json").get("step")
        is_complete = run.steps is not None and (reported == run.steps or (run.step or 0) >= run.steps)
        run.state = state_of(folder, attempts, is_complete, jobs, submitted)
    except (OSError, UserError) as error:
        run.notes.append(_reason(error))
    _add_state_notes(run, folder, attempts)
    return run


def read_raw_config(folder: Path, notes: list[str]) -> dict[str, Any]:
    """Read a run's config, which the launcher wrote where training has not begun."""
    for name in ("config.yaml", "launch/config.yaml"):
        try:
            content = yaml.load(read_plain(folder / name), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except FileNotFoundError:
            continue
        except (OSError, UserError, yaml.YAMLError, ValueError, RecursionError) as error:
            notes.append(f"{name}: damaged: {_reason(error)}")
            return {}
        if not isinstance(content, dict):
            notes.append(f"{name}: damaged: expected keys and values")
            return {}
        return content
    notes.append("config.yaml: missing")
    return {}


def _add_progress(run: RunStatus, row: Mapping[str, Any]) -> None:
    """Add step, loss and speed from the last row of metrics."""
    step, rate, tokens = row.get("step"), _positive_number(row.get("tokens_per_s")), _positive_number(row.get("tokens"))
    run.step = step if type(step) is int and step >= 0 else None
    run.loss, run.updated = _number(row.get("loss")), _number(row.get("time"))
    run.tokens_per_s = rate
    if rate and tokens and run.step and run.steps:
        run.seconds_left = max(0, run.steps - run.step) * tokens / run.step / rate


def _add_effective_time(run: RunStatus, folder: Path, config: Mapping[str, Any], attempts: list[Attempt]) -> None:
    """Add restarts and effective time."""
    hours = _positive_number(_section(config, "checkpoint").get("mttf_hours"))
    time_spent = effective_time_so_far(folder, attempts, hours)
    run.attempts, run.restarts = len(attempts), len(time_spent.restarts)
    run.lost_steps, run.suggested_save_every = time_spent.lost_steps, time_spent.suggested_steps
    run.effective = time_spent.share if time_spent.steps else None


def _add_state_notes(run: RunStatus, folder: Path, attempts: list[Attempt]) -> None:
    """Note why a run ended, silence of one that runs, and how often it should save."""
    if run.state != RUNNING:
        run.seconds_left = None
    cause = read_object(folder / "launch" / "result.json").get("cause") if run.state == FAILED else None
    if run.state == DEAD and not attempts and (folder / SUBMITTED).exists():
        cause = end_without_result(folder)
    cause = cause or (attempts[-1].cause if attempts and run.state == FAILED else None)
    if cause:
        run.notes.append(" ".join(str(cause).split()))
    if run.state == RUNNING and run.updated is not None and time.time() - run.updated > SILENT_SECONDS:
        run.notes.append(f"no row of metrics for {duration(time.time() - run.updated)}")
    if run.suggested_save_every:
        run.notes.append(f"checkpoint.save_every: {run.suggested_save_every:,} would lose the least time")


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return a section of a config; empty where it is none."""
    section = config.get(name)
    return section if isinstance(section, dict) else {}


def _number(value: object) -> float | None:
    """Return a finite number of JSON as a float, else None."""
    return float(value) if type(value) in (int, float) and math.isfinite(value) else None  # type: ignore[arg-type]


def _positive_number(value: object) -> float | None:
    """Return a number above 0 as a float, else None."""
    number = _number(value)
    return number if number is not None and number > 0 else None


def _positive(value: object) -> int | None:
    """Return a whole number above 0, else None."""
    return value if type(value) is int and value > 0 else None


def _reason(error: Exception) -> str:
    """Return why something could not be read, in one line of moderate length."""
    return cause_of(error)[:200]
