"""attempts.jsonl: when each attempt at a run started, saved and ended, and why.

    {"event": "start", "attempt": 2, "time": ..., "step": 100, "processes": 8, "nodes": [...], "job": "17", ...}
    {"event": "first_step", "attempt": 2, "time": ..., "step": 101}
    {"event": "save", "attempt": 2, "time": ..., "step": 200, "seconds": {"start": ..., "step": ..., "save": ...}}
    {"event": "end", "attempt": 2, "time": ..., "step": 230, "outcome": "failed", "cause": "...", "seconds": {...}}

`seconds` are those of the attempt so far in each phase (training/phases.py). `cause` of a start is why the launcher
restarted the run by itself (environment variable HYBRIDTRON_RESTART_CAUSE), null where a person started it. Training
writes these rows; a supervisor writes the end of an attempt whose processes could not. Imports no torch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridtron.files import append_rows, is_number, open_rows, read_last_row, read_lines, read_plain

FILE = "attempts.jsonl"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
NUMBER_VARIABLE, CAUSE_VARIABLE = "HYBRIDTRON_ATTEMPT", "HYBRIDTRON_RESTART_CAUSE"


@dataclass
class Save:
    """A checkpoint that became complete at `time`; `seconds` are those of its attempt up to it."""

    step: int
    time: float
    seconds: dict[str, float]


@dataclass
class Attempt:
    """One attempt at a run. What is not known is None."""

    number: int
    started: float
    start_step: int = 0
    processes: int | None = None
    nodes: list[str] = field(default_factory=list)
    job: str | None = None
    restart_cause: str | None = None  # of a restart by the launcher
    first_step_at: float | None = None
    saves: list[Save] = field(default_factory=list)
    ended: float | None = None
    end_step: int | None = None
    outcome: str | None = None
    cause: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # of the end row


def read_attempts(folder: Path) -> list[Attempt]:
    """Read the attempts of a run folder in order, without damaged rows and those of an attempt without a start."""
    file = folder / FILE
    found: dict[int, Attempt] = {}
    for line in read_lines(read_plain(file)) if file.exists() else []:
        row = line.value
        if isinstance(row, dict) and type(row.get("attempt")) is int and is_number(row.get("time")):
            _add(found, row)
    return list(found.values())


def _add(found: dict[int, Attempt], row: Mapping[str, Any]) -> None:
    """Add a row to the attempts found so far."""
    event, number, when, step = row.get("event"), row["attempt"], float(row["time"]), row.get("step")
    step = step if type(step) is int and step >= 0 else None
    if event == "start":
        nodes = row.get("nodes")
        found[number] = Attempt(
            number,
            when,
            step or 0,
            row["processes"] if type(row.get("processes")) is int else None,
            [str(node) for node in nodes] if isinstance(nodes, list) else [],
            _text(row.get("job")),
            _text(row.get("cause")),
        )
        return
    attempt = found.get(number)
    if attempt is None:
        return
    if event == "first_step":
        attempt.first_step_at = when
    elif event == "save" and step is not None:
        attempt.saves.append(Save(step, when, _seconds(row)))
    elif event == "end":
        _add_end(attempt, when, step, row)


def _add_end(attempt: Attempt, when: float, step: int | None, row: Mapping[str, Any]) -> None:
    """Add an end; a second one, by a supervisor that knows the first cause, corrects outcome and cause."""
    if attempt.ended is None:
        attempt.ended, attempt.end_step, attempt.seconds = when, step, _seconds(row)
    else:
        attempt.end_step = max((each for each in (attempt.end_step, step) if each is not None), default=None)
    outcome = row.get("outcome")
    attempt.outcome = outcome if outcome in (FINISHED, STOPPED, FAILED) else FAILED
    attempt.cause = _text(row.get("cause")) or attempt.cause


def begin_attempt(
    folder: Path, step: int, processes: int, nodes: Sequence[str], started: float | None = None
) -> int:  # fmt: skip
    """Append the start of an attempt, by default at this moment, and return its number.

    An attempt before it that has no end was killed: its end is written first, from the last row of metrics.jsonl.
    """
    end_attempt(folder, FAILED)
    before = read_attempts(folder)
    number = before[-1].number + 1 if before else 1
    launched = os.environ.get(NUMBER_VARIABLE, "")
    number = max(number, int(launched) if launched.isdecimal() else 0)
    append_event(
        folder,
        event="start",
        attempt=number,
        time=time.time() if started is None else started,
        step=step,
        processes=processes,
        nodes=list(dict.fromkeys(nodes)),
        job=os.environ.get("SLURM_JOB_ID"),
        cause=os.environ.get(CAUSE_VARIABLE) or None,
    )
    return number


def end_attempt(
    folder: Path,
    outcome: str,
    cause: str | None = None,
    step: int | None = None,
    ended: float | None = None,
    seconds: Mapping[str, float] | None = None,
) -> bool:
    """Append the end of the last attempt; return False where it has one already, or no attempt has started.

    Args:
        folder: the run folder.
        outcome: finished, stopped or failed.
        cause: why it ended, in one line.
        step: the last step trained; by default that of the last row of metrics.jsonl.
        ended: seconds since the epoch; by default the time of the attempt's last sign of life in the run folder.
        seconds: spent in each phase, where that is known.
    """
    attempts = read_attempts(folder)
    if not attempts or attempts[-1].outcome is not None:
        return False
    last = attempts[-1]
    known_step, known_time = last_progress(folder, last)
    append_event(
        folder,
        event="end",
        attempt=last.number,
        time=known_time if ended is None else ended,
        step=known_step if step is None else step,
        outcome=outcome,
        cause=cause,
        **({} if seconds is None else {"seconds": dict(seconds)}),
    )
    return True


def judge_attempt(
    folder: Path, since: float, outcome: str, cause: str | None, step: int | None = None, ended: float | None = None
) -> bool:
    """Record what a supervisor found about the last attempt, in place of what its processes saw of it.

    Return False where nothing is to be added, or no attempt has begun `since` this time.
    """
    attempts = read_attempts(folder)
    if not attempts or attempts[-1].started < since:
        return False
    last = attempts[-1]
    if last.outcome is None:
        return end_attempt(folder, outcome, cause, step, ended)
    if last.outcome == outcome and cause in (None, last.cause):
        return False
    when = time.time() if ended is None else ended
    append_event(folder, event="end", attempt=last.number, time=when, step=step, outcome=outcome, cause=cause)
    return True


def last_progress(folder: Path, attempt: Attempt) -> tuple[int, float]:
    """Return the last step that the run's last attempt is known to have trained, and when that was known."""
    step, when = attempt.start_step, max(attempt.started, attempt.first_step_at or 0.0)
    for save in attempt.saves:
        step, when = max(step, save.step), max(when, save.time)
    row = read_last_row(folder / "metrics.jsonl") or {}
    if type(row.get("step")) is int and is_number(row.get("time")) and row["time"] >= attempt.started:
        step, when = max(step, row["step"]), max(when, row["time"])
    return step, when


def append_event(folder: Path, **row: Any) -> None:
    """Append one row, on disk when this returns. Raises OSError, and UserError for a link in the file's place."""
    stream, _ = open_rows(folder / FILE)
    with stream:
        append_rows(stream, [row])


def _seconds(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each phase as far as they are numbers."""
    seconds = row.get("seconds")
    if not isinstance(seconds, dict):
        return {}
    return {phase: float(spent) for phase, spent in seconds.items() if is_number(spent) and spent >= 0}


def _text(value: object) -> str | None:
    """Return a value as one line of text; None as it is."""
    return None if value is None else " ".join(str(value).split())
