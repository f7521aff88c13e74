"""The output of a launched run's processes, logs/rank_00000.log of its folder, as it grows."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.files import open_to_read, read_object
from hybridtron.monitoring.queue import queued_jobs
from hybridtron.monitoring.runs import read_status, require_run
from hybridtron.monitoring.state import RUNNING, WAITING
from hybridtron.training.run_folder.submitted import read_submitted
from hybridtron.training.run_folder.unrecorded_end import end_without_result

POLL_SECONDS = 0.25
STATE_SECONDS = 2.0  # between looks at the state of a run that is followed
BLOCK = 1 << 20


def read_log(folder: Path, rank: int = 0, follow: bool = False) -> Iterator[bytes]:
    """Yield the log of a rank piece by piece; with `follow` also what it grows by, until the run ends.

    Raises UserError where the folder holds no run, or the run no log of this rank.
    """
    require_run(folder)
    if rank < 0:
        raise UserError(f"rank = {rank}: expected at least 0")
    file = folder / "logs" / f"rank_{rank:05d}.log"
    if not (follow and _goes_on(folder)):
        _require_log(folder, file, rank)
    offset = 0
    if not follow:
        yield from _read_from(file, offset)
        return
    looked_at, goes_on = float("-inf"), True
    while True:
        if os.path.lexists(file) and file.stat().st_size < offset:  # replaced by another
            offset = 0
        for block in _read_from(file, offset):
            offset += len(block)
            yield block
        if not goes_on:  # the end was seen before this last look at the file
            return
        if time.monotonic() - looked_at > STATE_SECONDS:
            looked_at, goes_on = time.monotonic(), _goes_on(folder)
        if goes_on:
            time.sleep(POLL_SECONDS)


def _goes_on(folder: Path) -> bool:
    """Return whether a run may still print something."""
    submitted = read_submitted(folder)  # before the queue is asked
    return read_status(folder, folder.name, queued_jobs(), submitted).state in (RUNNING, WAITING)


def _require_log(folder: Path, file: Path, rank: int) -> None:
    """Raise UserError where there is no log of a rank."""
    if os.path.lexists(file):
        return
    ranks = sorted(int(path.stem.removeprefix("rank_")) for path in folder.glob("logs/rank_" + "[0-9]" * 5 + ".log"))
    if ranks:
        expected = f"one of 0 to {ranks[-1]}" if ranks[-1] else "0"
        raise UserError(f"rank = {rank}: {folder} has no log of it; expected {expected}")
    if (folder / "launch" / "job.json").exists():
        if _goes_on(folder):
            raise UserError(f"{folder}: no log yet; its job has not started")
        cause = read_object(folder / "launch" / "result.json").get("cause") or end_without_result(folder)
        raise UserError(f"{folder}: no log: {' '.join(str(cause).split())}")
    raise UserError(f"{folder}: no logs, since the run was not started by `hybridtron launch`")


def _read_from(file: Path, offset: int) -> Iterator[bytes]:
    """Yield what a file holds from an offset on; nothing where it is missing."""
    try:
        stream = open_to_read(file)
    except FileNotFoundError:
        return
    with stream:
        stream.seek(offset)
        while block := stream.read(BLOCK):
            yield block
