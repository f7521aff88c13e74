"""The files by which the supervisors of a job meet: launch/attempt_N of its folder, one for each start of all ranks.

start.json        by rank 0's supervisor: which incarnation of the job, how many processes
rendezvous.json   by rank 0: where it listens for the other ranks
rank_00001.json   by each supervisor: node and process ids
failed            by the first supervisor that sees a failure
report_00001.json by each supervisor: how its rank ended
verdict.json      once: the first cause, and what all do next
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import open_to_write, read_object, replace_file
from hybridtron.launcher.private_files import make_folder
from hybridtron.training.run_folder.attempts import judge_attempt


@dataclass(frozen=True)
class Report:
    """How one rank of an attempt ended. `code` is negative for a signal, None where it had to be killed."""

    rank: int
    node: str
    time: float
    code: int | None
    step: int
    phase: str
    cause: str | None = None  # of a failure of its own
    weight: int = 0  # how likely that is the first cause: the largest wins
    finished: bool = False
    stop_signal: int = 0  # that asked it to stop


@dataclass(frozen=True)
class Verdict:
    """How an attempt ended, and what all supervisors do next."""

    outcome: str  # finished, stopped, failed
    action: str  # end, restart, requeue
    code: int  # exit code, with action end
    cause: str | None
    step: int
    time: float


@dataclass(frozen=True)
class Attempt:
    folder: Path

    @property
    def number(self) -> int:
        return int(self.folder.name.rpartition("_")[2])

    def is_superseded(self) -> bool:
        """Return whether a later attempt exists."""
        return os.path.lexists(self.folder.with_name(f"attempt_{self.number + 1}"))

    def restart_cause(self) -> str | None:
        """Return why the attempt before this one led to this one; None where a person started the job."""
        incarnation = str(self.read("start.json").get("incarnation"))
        verdict = Attempt(self.folder.with_name(f"attempt_{self.number - 1}")).verdict()
        if verdict and verdict.action != "end":
            return verdict.cause or "a time limit or a preemption"
        return None if incarnation.endswith(".0") or "." not in incarnation else "the scheduler queued the job again"

    @property
    def rendezvous(self) -> Path:
        return self.folder / "rendezvous.json"

    def write(self, name: str, content: dict[str, Any]) -> None:
        replace_file(self.folder / name, json.dumps(content) + "\n")

    def read(self, name: str) -> dict[str, Any]:
        """Return the content of a file; empty where it is missing or not whole."""
        return read_object(self.folder / name)

    def mark_failed(self) -> None:
        """Tell the other supervisors that a rank has failed."""
        open_to_write(self.folder / "failed").close()

    def has_failed(self) -> bool:
        return os.path.lexists(self.folder / "failed")

    def report(self, report: Report) -> None:
        self.write(f"report_{report.rank:05d}.json", asdict(report))

    def reports(self) -> dict[int, Report]:
        """Return the reports so far, by rank."""
        found = {}
        for file in self.folder.glob("report_*.json"):
            if content := self.read(file.name):
                found[int(content["rank"])] = Report(**content)
        return found

    def node_of(self, rank: int) -> str:
        """Return the node of a rank, as far as its supervisor has said."""
        return str(self.read(f"rank_{rank:05d}.json").get("node", "a node that never answered"))

    def verdict(self) -> Verdict | None:
        content = self.read("verdict.json")
        return Verdict(**content) if content else None

    def record(self, run_folder: Path, verdict: Verdict) -> None:
        """Write the verdict into attempts.jsonl of a training run."""
        since = self.read("start.json").get("time")
        with contextlib.suppress(OSError, UserError):
            if isinstance(since, int | float):
                judge_attempt(run_folder, since, verdict.outcome, verdict.cause, verdict.step or None, verdict.time)

    def decide(self, verdict: Verdict) -> bool:
        """Write the verdict; return False where there is one already."""
        draft = self.folder / f"verdict.json.{os.getpid()}-{time.monotonic_ns()}"
        replace_file(draft, json.dumps(asdict(verdict)) + "\n")
        try:
            os.link(draft, self.folder / "verdict.json")
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True


def attempts(launch_folder: Path) -> list[Attempt]:
    """Return the attempts of a job, oldest first."""
    found = [path for path in launch_folder.glob("attempt_*") if re.fullmatch(r"attempt_[0-9]+", path.name)]
    return sorted(map(Attempt, found), key=lambda attempt: attempt.number)


def new_attempt(launch_folder: Path, launch_id: str, incarnation: str, processes: int) -> Attempt:
    """Begin the next attempt, as rank 0's supervisor does."""
    before = attempts(launch_folder)
    attempt = Attempt(launch_folder / f"attempt_{before[-1].number + 1 if before else 1}")
    # Renamed when it has its content: an attempt without start.json would look like another start of the job.
    draft = Attempt(attempt.folder.with_name(f"{attempt.folder.name}.{os.getpid()}-{time.monotonic_ns()}"))
    make_folder(draft.folder)
    draft.write(
        "start.json", {"launch": launch_id, "incarnation": incarnation, "processes": processes, "time": time.time()}
    )
    os.rename(draft.folder, attempt.folder)
    return attempt


def find_attempt(launch_folder: Path, incarnation: str, after: int) -> Attempt | None:
    """Return the attempt that rank 0's supervisor began after number `after`, if there is one."""
    for attempt in reversed(attempts(launch_folder)):
        if attempt.number <= after:
            return None
        if attempt.read("start.json").get("incarnation") == incarnation:
            return attempt
    return None


@dataclass(frozen=True)
class History:
    """The attempts of a launch before one of them."""

    failures: int = 0  # within the last hours, with attempts that were stopped before a new step
    is_first: bool = True
    last_step: int | None = None  # of the attempt before, in a training


def history_of(launch_folder: Path, launch_id: str, hours: float, is_training: bool) -> History:
    """Return the history of a launch whose latest attempt has no verdict yet."""
    own = [each for each in attempts(launch_folder) if each.read("start.json").get("launch") == launch_id]
    since = time.time() - 3600 * hours
    failures, last_step = 0, None
    for verdict in filter(None, (attempt.verdict() for attempt in own)):
        is_fruitless = verdict.outcome == "failed" or (last_step is not None and verdict.step <= last_step)
        failures += is_fruitless and verdict.time > since
        last_step = verdict.step if is_training else None
    return History(failures, len(own) <= 1, last_step)
