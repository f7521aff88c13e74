"""Keep one rank of a job alive: start it, watch it, pass signals on, and start again after a failure of any rank.

Every task of a job runs one supervisor, which does not import torch. They meet through the files of `attempts.py`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from types import FrameType

from hybridtron.distributed.process_groups.launch import caught_signals, signal_at_death_of_parent
from hybridtron.errors import UserError
from hybridtron.files import append_text, replace_file
from hybridtron.launcher.job import Spec
from hybridtron.launcher.supervision import verdict as verdicts
from hybridtron.launcher.supervision.attempts import Attempt, Report, Verdict, find_attempt, history_of, new_attempt
from hybridtron.launcher.supervision.child import Child, log_file, start_child
from hybridtron.launcher.supervision.task import ECHO, Task
from hybridtron.training.process.signals import ECHO_SECONDS
from hybridtron.training.run_folder.folder import RunFolder

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.1
LOOKS_PER_SECOND = 500  # at shared files, of all supervisors together, so that many do not burden the file system
FREE_SECONDS = 5.0  # for processes of a former attempt to let go of the run folder, before a line says so
PEER_SECONDS = 2.0  # for a rank to end by itself after another has failed
SETTLE_SECONDS = 15.0  # for the reports of all ranks after a failure
START_AGAIN = 75  # exit code that asks the local queue to start all tasks again (EX_TEMPFAIL)
SUPERSEDED = Verdict("failed", "end", 0, None, 0, 0.0)


def supervise(spec: Spec, task: Task) -> int:
    """Run this task's rank until the job is finished, stopped or given up; return the exit code."""
    if task.job_id is None:
        signal_at_death_of_parent(signal.SIGTERM)
    supervisor = Supervisor(spec, task)
    for number in caught_signals():
        signal.signal(number, supervisor.receive)
    return supervisor.run()


class Supervisor:
    def __init__(self, spec: Spec, task: Task) -> None:
        self.spec, self.task, self.config = spec, task, spec.config
        per_node = spec.processes_per_node
        usable = [count * per_node for count in spec.node_counts if count * per_node <= task.num_tasks]
        if not usable:
            expected = spec.node_counts[0] * per_node
            raise UserError(f"{task.num_tasks} tasks were started: expected at least {expected}")
        self.processes = usable[-1]
        self.look_seconds = max(POLL_SECONDS, self.processes / LOOKS_PER_SECOND)
        self.child: Child | None = None
        self.stop_signal, self.stop_at, self.ends_now = 0, 0.0, False
        self.echoed = 0
        self.signalled: Child | None = None  # the latest that the signal was passed on to
        self.has_judged = False  # on the latest attempt

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Pass the first signal on. A second Ctrl-C ends the rank at once."""
        if not self.stop_signal:
            self.stop_signal, self.stop_at = number, time.monotonic()
            self._forward()
        elif number == signal.SIGINT == self.stop_signal and time.monotonic() - self.stop_at > ECHO_SECONDS:
            self.ends_now = True

    def _forward(self) -> None:
        if self.child:
            self.signalled = self.child
            self.child.signal(self.stop_signal if self.spec.is_training else signal.SIGTERM)

    def run(self) -> int:
        """Run attempts until one is the last."""
        number = 0
        while True:
            attempt = self._begin(number)
            if attempt is None:
                return self._end_before_attempt()
            number, self.has_judged = attempt.number, False
            if self.task.rank < self.processes:
                self._run_attempt(attempt)
            verdict = self._wait_for_verdict(attempt)
            if verdict.action == "restart":
                continue
            if verdict.action == "requeue":
                return self._requeue()
            return verdict.code

    def _begin(self, after: int) -> Attempt | None:
        """Begin an attempt, or wait until rank 0's supervisor has begun it; None where that takes too long."""
        began = time.monotonic()
        deadline, says_at = began + self.config.start_seconds, began + FREE_SECONDS
        folder = self.spec.launch_folder
        while time.monotonic() < deadline:
            if self.stop_signal and (self.task.rank == 0 or time.monotonic() > self.stop_at + SETTLE_SECONDS):
                return None
            if self.task.rank:
                if attempt := find_attempt(folder, self.task.incarnation, after):
                    return attempt
            elif self._is_free():
                (folder / "result.json").unlink(missing_ok=True)
                return new_attempt(folder, self.spec.launch_id, self.task.incarnation, self.processes)
            elif time.monotonic() > says_at:
                says_at = float("inf")
                seconds = f"{self.config.start_seconds:g} s (start_seconds)"
                self._print(
                    f"run folder {self.spec.folder}: another process trains it; waiting for its end, {seconds} at most"
                )
            time.sleep(self.look_seconds)
        if self.stop_signal:
            return None
        waited = "the run folder was never free" if self.task.rank == 0 else "rank 0 began no attempt"
        self._print(f"{self.task.place}: {waited} in {self.config.start_seconds:g} s")
        return None

    def _end_before_attempt(self) -> int:
        """End this task where no attempt began; return the exit code. A time limit puts the job back into the queue."""
        if not self.stop_signal:
            return 1
        if self.task.rank == 0 and self.task.job_id and self.stop_signal in verdicts.REQUEUED:
            self.has_judged = True
            return self._requeue()
        return 0

    def _is_free(self) -> bool:
        """Return whether no process of a former attempt still writes to the run folder."""
        folder = RunFolder(self.spec.path)
        free = not self.spec.is_training or folder.lock()
        folder.unlock()
        return free

    def _run_attempt(self, attempt: Attempt) -> None:
        """Run the rank to its end, and report that."""
        task = self.task
        self.child = child = start_child(self.spec, task, attempt, self.processes)
        self.echoed = child.log_start
        ids = {"supervisor": os.getpid(), "pid": child.process.pid}
        attempt.write(f"rank_{task.rank:05d}.json", {"rank": task.rank, "node": task.node, **ids})
        try:
            report = self._watch(attempt, child)
        finally:
            child.kill()  # what it has left behind, too
            self._echo(child)
            child.close()
            self.child = None
        try:
            attempt.report(report)
        except OSError as error:  # as of a full disk: the others wait for this report for a limited time
            self._print(f"{self.task.place}: no report: {error}")
        finally:
            if report.weight > verdicts.ENDED:
                attempt.mark_failed()

    def _watch(self, attempt: Attempt, child: Child) -> Report:
        """Wait until the rank has ended, or must be ended; return how."""
        peer_deadline = float("inf")
        polled_at = looked_at = time.monotonic()
        forwarded = False
        while child.process.poll() is None:
            time.sleep(POLL_SECONDS)
            now = time.monotonic()
            if now - polled_at > 10 * POLL_SECONDS:  # this process was suspended, and perhaps the rank with it
                child.beat_at += now - polled_at
            polled_at = now
            child.read_beats()
            self._echo(child)
            if self.stop_signal and not forwarded and self._can_forward(child):
                self._forward()
                forwarded = True
                if self.task.rank == 0 and self.task.job_id:
                    self._print(f"signal {self.stop_signal} ({signal.Signals(self.stop_signal).name}): saving")
            if now - looked_at >= self.look_seconds:
                looked_at = now
                if self._is_superseded(attempt):
                    return self._end(child, "was ended: a later start of the job has taken over", verdicts.ENDED)
                if peer_deadline == float("inf") and attempt.has_failed():
                    peer_deadline = now + PEER_SECONDS
            if now > peer_deadline:
                return self._stopped(child) or self._end(child, None, verdicts.ENDED)
            if self.ends_now:
                return self._end(child, "was ended at once by a second signal", verdicts.ERROR)
            if self.stop_signal and now > self.stop_at + self.config.save_seconds:
                text = f"did not end within {self.config.save_seconds} s of signal {self.stop_signal} (save_seconds)"
                return self._end(child, text, verdicts.ERROR)
            if self.spec.is_training and (report := self._stalled(child, now)):
                return report
        child.read_beats()
        return verdicts.ended_report(self.task.rank, self.task.node, child, self._own_signal())

    def _can_forward(self, child: Child) -> bool:
        """Return whether the signal has yet to reach a rank, and would be heeded there."""
        return child.is_catching if self.spec.is_training else child is not self.signalled

    def _own_signal(self) -> int:
        return self.stop_signal if self.spec.is_training or not self.stop_signal else int(signal.SIGTERM)

    def _stalled(self, child: Child, now: float) -> Report | None:
        """End a rank that has shown no progress for too long; return its report."""
        key = "heartbeat_seconds" if child.has_begun and child.phase != "closing" else "start_seconds"
        limit = getattr(self.config, key)
        if now - child.beat_at <= limit:
            return None
        if report := self._stopped(child):
            return report
        text = f"made no progress for {limit:g} s after step {child.step}, {child.phase} ({key})"
        return self._end(child, text, verdicts.STALLED)

    def _stopped(self, child: Child) -> Report | None:
        """End a rank that a signal has stopped, for which others wait in vain; return its report."""
        if not child.is_stopped():
            return None
        return self._end(child, f"is stopped by a signal (SIGSTOP) since step {child.step}", verdicts.STOPPED)

    def _end(self, child: Child, cause: str | None, weight: int) -> Report:
        child.kill()
        return verdicts.killed_report(self.task.rank, self.task.node, child, self.stop_signal, cause, weight)

    def _is_superseded(self, attempt: Attempt) -> bool:
        """Return whether another start of this job, such as after a requeue, has taken over."""
        if not attempt.is_superseded():
            return False
        return find_attempt(self.spec.launch_folder, self.task.incarnation, attempt.number) is None

    def _wait_for_verdict(self, attempt: Attempt) -> Verdict:
        """Return the verdict on an attempt. Rank 0's supervisor makes it; where that one is gone, another does."""
        rank, has_failed = self.task.rank, False
        settle = SETTLE_SECONDS * (2 if rank else 1) + 0.5 * rank
        # All ranks of a training end together, or one that is gone would never be missed.
        ends_soon = self.spec.is_training and rank < self.processes
        deadline = time.monotonic() + self.config.start_seconds + settle if ends_soon else float("inf")
        while True:
            if verdict := attempt.verdict():
                return verdict
            if self._is_superseded(attempt):
                return attempt.verdict() or SUPERSEDED  # its file may have come with the next attempt
            now = time.monotonic()
            if not has_failed and attempt.has_failed():
                has_failed, deadline = True, now + settle
            complete = rank == 0 and len(attempt.reports()) == self.processes
            if complete or now > deadline:
                self._judge(attempt)
            else:
                time.sleep(self.look_seconds)

    def _judge(self, attempt: Attempt) -> None:
        """Make the verdict, and print and record it."""
        verdict = verdicts.judge(
            attempt.reports(),
            self.processes,
            attempt.node_of,
            self.config,
            history_of(
                self.spec.launch_folder, self.spec.launch_id, self.config.restart_window_hours, self.spec.is_training
            ),
            can_requeue=self.task.job_id is not None,
        )
        if not attempt.decide(verdict):
            return
        self.has_judged = True
        if self.spec.is_training:
            attempt.record(self.spec.path, verdict)
        if verdict.action == "end":
            content = {**asdict(verdict), "incarnation": self.task.incarnation, "job": self.task.job_id}
            replace_file(self.spec.launch_folder / "result.json", json.dumps(content) + "\n")
        follows = {"restart": "starting again", "requeue": "the job is queued again", "end": "the job ends"}
        if verdict.cause or verdict.action == "requeue":
            self._print(f"attempt {attempt.number}: {verdict.cause or verdict.outcome}; {follows[verdict.action]}")

    def _requeue(self) -> int:
        """Put the job back into the queue; return the exit code of this task."""
        if self.task.job_id is None:
            return START_AGAIN
        if self.has_judged:
            done = subprocess.run(
                ["scontrol", "requeue", self.task.job_id], capture_output=True, text=True, stdin=subprocess.DEVNULL
            )
            if done.returncode:
                self._print(f"job {self.task.job_id} could not be queued again: {done.stderr.strip()}")
                return 1
        return 0

    def _print(self, text: str) -> None:
        """Print a line, and write it into rank 0's log."""
        line = f"hybridtron: {text}\n"
        with contextlib.suppress(OSError):
            print(line, end="", file=sys.stderr, flush=True)
        try:
            append_text(log_file(self.spec, 0), line)
        except OSError as error:
            logger.warning("%s", error)

    def _echo(self, child: Child) -> None:
        """Print what the log has grown by, where that is asked for."""
        if ECHO not in os.environ or self.task.rank:
            return
        with contextlib.suppress(OSError), child.log.open("rb") as file:
            file.seek(self.echoed)
            content = file.read()
            self.echoed += len(content)
            os.write(1, content)
