"""What became of each fault: from what the agent, the launcher and the run itself have recorded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hybridtron.faults.plan import KINDS, Fault, Session
from hybridtron.training.run_folder.attempts import Attempt, read_attempts

RECOVERED, WENT_ON, LOUD, WRONG, NOT_FIRED = "recovered", "went on", "loud", "WRONG", "not fired"
TENSORS = ("*.distcp", "common.pt", "train_state.json")  # of a checkpoint, that must be equal bit by bit


@dataclass
class Result:
    """One fault and what followed. Times are in seconds, None where they do not apply or are not measured."""

    kind: str
    way: str
    processes: int
    layout: str
    session: int
    number: int
    rank: int
    step: int
    point: str
    outcome: str
    problem: str | None = None  # of a WRONG one
    cause: str | None = None  # as the supervisors recorded it
    detection: float | None = None  # from the fault to the recorded cause
    restart: float | None = None  # from the recorded cause to the first step of the next attempt
    lost_steps: int | None = None  # trained at the fault, and not in the checkpoint that the next attempt began with
    lost_saved: int | None = None  # steps in the newest undamaged checkpoint, and not in that one: must be 0


@dataclass(frozen=True)
class Firing:
    """What the agent recorded when a fault happened."""

    fault: Fault
    time: float
    attempt: int
    step: int
    checkpoints: tuple[int, ...]  # steps, newest first
    latest: str


def read_firings(plan: Path, faults: Sequence[Fault]) -> list[Firing]:
    """Return the faults that have happened, in the order of time."""
    found = []
    for fault in faults:
        file = plan.parent / "fired" / f"{fault.number}.json"
        if file.is_file():
            row: dict[str, Any] = json.loads(file.read_text())
            steps = tuple(int(name.removeprefix("step_")) for name in row["checkpoints"])
            found.append(Firing(fault, row["time"], row["attempt"], row["step"], steps, row["latest"]))
    return sorted(found, key=lambda firing: firing.time)


def results_of(
    session: Session, plan: Path, folder: Path, log: str, ends: Mapping[int, float], problem: str | None
) -> list[Result]:
    """Return the result of each fault of a session.

    Args:
        session: the session.
        plan: the file that the agent read.
        folder: the run folder.
        log: all that rank 0 has printed.
        ends: attempt -> when the driver saw that all its processes had ended.
        problem: what is wrong with the session as a whole, such as other final weights; None: nothing.
    """
    firings = read_firings(plan, session.faults)
    armed = [json.loads(file.read_text()) for file in (plan.parent / "fired").glob("*.armed")]
    moments = [(each.time, each.attempt) for each in firings] + [(row["time"], row["attempt"]) for row in armed]
    attempts = read_attempts(folder)
    verdicts = _verdicts(folder)
    results = []
    for fault in session.faults:
        result = Result(
            fault.kind, session.way, session.processes, " ".join(session.layout), session.number, fault.number,
            fault.rank, fault.step, fault.point, NOT_FIRED,
        )  # fmt: skip
        results.append(result)
        firing = next((each for each in firings if each.fault == fault), None)
        if firing is None:
            continue
        is_last = all(attempt != firing.attempt or when <= firing.time for when, attempt in moments)
        later = next((each for each in attempts if each.number > firing.attempt), None) if is_last else None
        _measure(result, firing, later, verdicts.get(firing.attempt), ends.get(firing.attempt))
        result.problem = _problem(result, firing, later, log) or problem
        if result.problem:
            result.outcome = WRONG
    return results


def _verdicts(folder: Path) -> dict[int, dict[str, Any]]:
    """Return the verdicts of the supervisors, by attempt."""
    return {
        int(file.parent.name.removeprefix("attempt_")): json.loads(file.read_text())
        for file in folder.glob("launch/attempt_*/verdict.json")
    }


def _measure(
    result: Result, firing: Firing, later: Attempt | None, verdict: Mapping[str, Any] | None, end: float | None
) -> None:
    """Fill in outcome, times and steps."""
    result.step = firing.step
    if later is None:
        result.outcome = WENT_ON
        return
    result.outcome = LOUD if must_be_refused(firing, later) else RECOVERED
    detected = float(verdict["time"]) if verdict and verdict["outcome"] == "failed" else end
    if verdict:
        result.cause = verdict["cause"]
    if result.way == "launched" and detected is not None:
        result.detection = detected - firing.time
        if later.first_step_at is not None:
            result.restart = later.first_step_at - detected
    result.lost_steps = max(0, firing.step - later.start_step)
    result.lost_saved = max(0, newest_whole(firing) - later.start_step)


def newest_whole(firing: Firing) -> int:
    """Return the step of the newest checkpoint that a fault has left whole, 0 where there is none."""
    lost = firing.checkpoints[: firing.fault.loses]
    return max([step for step in _completed(firing) if step not in lost], default=0)


def _completed(firing: Firing) -> list[int]:
    """Return the steps of checkpoints from which a run may go on: one beyond `latest` counts where that names none."""
    named = firing.latest.removeprefix("step_")
    return [step for step in firing.checkpoints if not named.isdecimal() or step <= int(named)]


def must_be_refused(firing: Firing, later: Attempt) -> bool:
    """Return whether a fault has left no checkpoint whole, and no save under way has completed another one since."""
    damaged = firing.checkpoints[: firing.fault.loses]
    return bool(damaged) and len(damaged) == len(firing.checkpoints) and later.start_step <= damaged[0]


def _problem(result: Result, firing: Firing, later: Attempt | None, log: str) -> str | None:
    """Return what is wrong with what followed a fault."""
    fault = firing.fault
    if result.lost_saved:
        return f"began at step {later.start_step if later else 0}; expected {newest_whole(firing)}"
    if later and must_be_refused(firing, later):
        refused = "no checkpoint is whole" in log
        return None if refused else "the next attempt did not refuse to begin without a whole checkpoint"
    if fault.loses and later and later.start_step <= firing.checkpoints[0]:
        for step in firing.checkpoints[: fault.loses]:
            if step not in _completed(firing):
                continue  # set aside unread: a save that was interrupted before `latest` named it
            if later.start_step == step:
                return f"began with the damaged checkpoint of step {step}"
            if f"step_{step:08d}" not in log or "damaged: " not in log:
                return f"no line of the log names the damaged checkpoint of step {step}"
    limits_log = fault.kind == "file_limit" and fault.rank == 0  # the same limit keeps the line out of that file
    if KINDS[fault.kind].lasts and not limits_log and "the checkpoint was not saved: " not in log:
        return "no line of the log says that a checkpoint was not saved"
    return None


def differences(reference: Path, folder: Path) -> str | None:
    """Compare the last checkpoints of two runs bit by bit; return what differs."""
    for pattern in TENSORS:
        expected = {file.name: file.read_bytes() for file in reference.glob(pattern)}
        found = {file.name: file.read_bytes() for file in folder.glob(pattern)}
        if expected.keys() != found.keys():
            return f"the last checkpoint holds {sorted(found)}; expected {sorted(expected)}"
        for name, content in expected.items():
            if content != found[name]:
                return f"{name} of the last checkpoint differs from that of an undisturbed run"
    return None


def as_row(result: Result) -> dict[str, Any]:
    """Return a result as JSON values, times to a hundredth."""
    return {
        key: round(value, 2) if isinstance(value, float) else value
        for key, value in asdict(result).items()
        if value not in (None, "")
    }
