"""The state of a run, from its folder: its lock, its attempts, its launcher, and the queue. Imports no torch."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hybridtron.files import is_locked, read_object
from hybridtron.training.run_folder.attempts import FAILED, FINISHED, STOPPED, Attempt
from hybridtron.training.run_folder.submitted import SUBMITTED

RUNNING, WAITING, DEAD = "running", "waiting", "dead"
STATES = (RUNNING, WAITING, FINISHED, STOPPED, FAILED, DEAD)
PENDING_JOBS = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED")


def state_of(
    folder: Path,
    attempts: Sequence[Attempt],
    is_complete: bool,
    jobs: Mapping[str, str] | None,
    submitted: Mapping[str, Any],
) -> str:
    """Return the state of the run in a folder.

    running: a process trains, or its launcher is about to start one again. waiting: it is in the queue. dead: it ended
    without a record, as by a kill, or its job did before training. finished, stopped (saved after a signal) or failed:
    it ended so.

    Args:
        folder: the run folder.
        attempts: those in its attempts.jsonl.
        is_complete: whether its last step is trained.
        jobs: state of each job of this user in SLURM's queue; None where that is not known, see `queued_jobs`.
        submitted: of `read_submitted`, from before the queue was asked: a job that is newer than `jobs` is not in it.
    """
    if is_locked(folder / ".lock"):
        return RUNNING
    last = attempts[-1] if attempts else None
    result = read_object(folder / "launch" / "result.json")
    number = submitted.get("job")
    for job in (str(number), str(last.job if last else None)):
        if jobs and job in jobs:
            return WAITING if jobs[job] in PENDING_JOBS else RUNNING
    if not result and _has_supervisor(folder):
        return RUNNING
    if last is not None:
        if last.outcome == STOPPED and not result and _next_action(folder) in ("restart", "requeue"):
            return WAITING
        return last.outcome or DEAD
    if result:
        return str(result["outcome"]) if result.get("outcome") in STATES else FAILED
    if is_complete:
        return FINISHED
    if number is not None and jobs is not None and _is_own(folder):  # the queue would have it
        return DEAD
    return STOPPED if (folder / "config.yaml").exists() else WAITING


def _is_own(folder: Path) -> bool:
    """Return whether this user submitted the job of a run."""
    try:
        return (folder / SUBMITTED).stat().st_uid == os.getuid()
    except OSError:
        return False


def _newest_attempt(folder: Path) -> Path | None:
    """Return the launcher's folder of the newest start of all ranks."""
    found = [path for path in (folder / "launch").glob("attempt_*") if re.fullmatch("attempt_[0-9]{1,9}", path.name)]
    return max(found, key=lambda path: int(path.name.removeprefix("attempt_")), default=None)


def _has_supervisor(folder: Path) -> bool:
    """Return whether a supervisor of the run lives on this machine."""
    attempt = _newest_attempt(folder)
    for file in sorted(attempt.glob("rank_*.json"))[:64] if attempt else []:
        rank = read_object(file)
        number = rank.get("supervisor")
        if rank.get("node") == socket.gethostname() and type(number) is int and number > 0 and _lives(number):
            return True
    return False


def _lives(number: int) -> bool:
    """Return whether there is a process of this number whose program is a Python."""
    try:
        return b"launcher" in Path(f"/proc/{number}/cmdline").read_bytes()
    except FileNotFoundError:
        return not Path("/proc/self").exists() and _can_signal(number)  # no such folder on macOS
    except OSError:
        return True


def _can_signal(number: int) -> bool:
    try:
        os.kill(number, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def _next_action(folder: Path) -> str | None:
    """Return what the launcher decided to do after the newest attempt: end, restart or requeue."""
    attempt = _newest_attempt(folder)
    action = read_object(attempt / "verdict.json").get("action") if attempt else None
    return action if isinstance(action, str) else None
