"""From the reports of all ranks: the first cause of a failure, and what the job does next."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from hybridtron.launcher.supervision.attempts import History, Report, Verdict

if TYPE_CHECKING:
    from hybridtron.launcher.config import LaunchConfig
    from hybridtron.launcher.supervision.child import Child

# How directly a report names a cause. Ranks that wait for another fail too, so theirs count less.
KILLED, ERROR, STOPPED, SILENT, ABORTED, STALLED, LOST_PEER, ENDED = 7, 6, 5, 4, 3, 2, 1, 0
PHASES = (
    "starting",
    "start",
    "step done",
    "evaluated",
    "saved",
    "train",
    "end",
    "closing",
)  # of one step, in their order
REQUEUED = (signal.SIGUSR1, signal.SIGUSR2)  # what a scheduler sends before a time limit or a preemption
BAD_INPUT, INTERRUPTED = 2, 130  # exit codes


def ended_report(rank: int, node: str, child: Child, stop_signal: int) -> Report:
    """Return the report of a rank that has ended by itself."""
    code = child.process.returncode
    cause, weight = None, ENDED
    if code < 0 and -code != stop_signal:
        weight = ABORTED if -code == signal.SIGABRT else KILLED
        cause = f"was killed (signal {-code})"
    elif code > 0 and not (stop_signal and code in (128 + stop_signal, INTERRUPTED)):
        weight = LOST_PEER if child.lost_peer else ERROR
        cause = f"ended with exit code {code}: {child.cause or child.last_line() or 'it printed nothing'}"
    return Report(
        rank, node, time.time(), code, child.step, child.phase, cause, weight, child.finished, stop_signal
    )  # fmt: skip


def killed_report(rank: int, node: str, child: Child, stop_signal: int, cause: str | None, weight: int) -> Report:
    """Return the report of a rank that its supervisor has ended; `cause` is None where another rank had failed."""
    beat = time.time() - (time.monotonic() - child.beat_at)
    return Report(rank, node, beat, None, child.step, child.phase, cause, weight, False, stop_signal)


def silent_report(rank: int, node: str) -> Report:
    """Return the report that a supervisor has not given."""
    return Report(rank, node, time.time(), None, 0, "starting", "is gone: its supervisor does not answer", SILENT)


def judge(
    reports: Mapping[int, Report],
    processes: int,
    node_of: Callable[[int], str],
    launch: LaunchConfig,
    history: History,
    can_requeue: bool,
) -> Verdict:
    """Decide from the reports of an attempt how it ended and what follows, given the attempts before it.

    Bad input is final in the first attempt only: later, it is a node that does not see the data.
    """
    complete = [reports.get(rank) or silent_report(rank, node_of(rank)) for rank in range(processes)]
    stop_signal = next((report.stop_signal for report in complete if report.stop_signal), 0)
    step = max(report.step for report in complete)
    requeues = can_requeue and stop_signal in REQUEUED
    is_spent = history.failures >= launch.max_restarts
    spent = (
        f"; restarted {history.failures} times within {launch.restart_window_hours:g} h, as often as max_restarts says"
    )
    worst = max(report.weight for report in complete)
    if worst == ENDED or (stop_signal and worst <= LOST_PEER):
        finished = not stop_signal or all(report.finished for report in complete)
        outcome = "finished" if finished else "stopped"
        if requeues and not finished and is_spent and history.last_step is not None and step <= history.last_step:
            return Verdict("failed", "end", 1, f"no new step before the job was stopped{spent}", step, time.time())
        action = "requeue" if requeues and not finished else "end"
        return Verdict(outcome, action, 0, None, step, time.time())
    first = first_cause(complete)
    cause = f"rank {first.rank} on {first.node} {first.cause or hung(first)}"
    if history.is_first and any(report.code == BAD_INPUT for report in complete):
        return Verdict("failed", "end", BAD_INPUT, cause, step, time.time())
    if stop_signal and not requeues:
        return Verdict("failed", "end", 1, cause, step, time.time())
    if is_spent:
        return Verdict("failed", "end", 1, cause + spent, step, time.time())
    if stop_signal:
        return Verdict("failed", "requeue", 1, cause, step, time.time())
    action = "requeue" if worst == SILENT or any(report.weight == SILENT for report in complete) else "restart"
    return Verdict("failed", action, 1, cause, step, time.time())


def first_cause(reports: Sequence[Report]) -> Report:
    """Return the report that names the first cause.

    Where all that ranks say is that they waited for another, it is the rank that has come least far.
    """
    worst = max(report.weight for report in reports)
    if worst > ABORTED:
        return min((report for report in reports if report.weight == worst), key=lambda report: report.time)
    behind = min(map(progress, reports))
    last = [report for report in reports if progress(report) == behind]
    if len(last) < len(reports):
        return min(last, key=lambda report: (-report.weight, report.time))
    return min((report for report in reports if report.weight == worst), key=lambda report: report.time)


def progress(report: Report) -> tuple[int, int]:
    """Return how far a rank has come, to compare with others."""
    return report.step, PHASES.index(report.phase) if report.phase in PHASES else -1


def hung(report: Report) -> str:
    """Return the cause of a rank that had to be killed because others waited for it."""
    return f"made no progress after step {report.step} ({report.phase})"
