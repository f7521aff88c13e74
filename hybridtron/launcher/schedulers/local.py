"""Jobs on this machine: each is a group of supervisors, and a queue starts no more than some jobs at once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.launcher.job import Spec, python_from
from hybridtron.launcher.schedulers.handle import Handle, State
from hybridtron.launcher.supervision import task
from hybridtron.launcher.supervision.supervisor import START_AGAIN

POLL_SECONDS = 0.1
KILLED = 1  # exit code of a job one of whose supervisors is gone and cannot be started again
DEVICES = Path("/dev")
GPUS = ("nvidia[0-9]*", "kfd", "dxg")  # NVIDIA, AMD, Windows Subsystem for Linux


def require_gpus(number: int) -> None:
    """Raise UserError where a job asks for GPUs and this machine has none. Looks for them without torch."""
    if number and not any(next(DEVICES.glob(pattern), None) for pattern in GPUS):
        raise UserError(f"gpus_per_node = {number}: this machine has no GPU; expected 0 with cluster local")


@dataclass
class LocalHandle(Handle):
    spec: Spec
    echo: bool
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    code: int | None = None
    signalled: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    @property
    def state(self) -> State:
        if self.code is None:
            return "running" if self.processes else "pending"
        if not self.processes:
            return "cancelled"
        outcome = self.result.get("outcome")
        return outcome if outcome in ("finished", "stopped") else "failed"

    def wait(self, timeout: float | None = None) -> int:
        if not self.done.wait(timeout):
            raise TimeoutError(f"job {self.name} is {self.state} after {timeout:g} s")
        assert self.code is not None
        return self.code

    def cancel(self) -> None:
        self.send_signal(signal.SIGTERM)

    def send_signal(self, number: int) -> None:
        """Send a signal to all tasks; one that has not started never does."""
        self.signalled = number
        for process in list(self.processes):
            if process.poll() is None:
                process.send_signal(number)

    def start(self) -> None:
        """Start all tasks."""
        spec, run_id = self.spec, uuid.uuid4().hex
        tasks = spec.node_counts[-1] * spec.processes_per_node
        command = python_from(Path(spec.root), "launcher.main", str(spec.launch_folder / "job.json"))
        self.processes = []
        for rank in range(tasks):
            env = {**os.environ, task.RANK: str(rank), task.NUM_TASKS: str(tasks), task.RUN_ID: run_id}
            if self.echo:
                env[task.ECHO] = "1"
            self.processes.append(
                subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
            )  # fmt: skip
        if self.signalled:  # while they were started
            self.send_signal(self.signalled)

    def poll(self) -> bool:
        """Take in what has ended; return whether the job has."""
        codes = [process.poll() for process in self.processes]
        if any(code is None for code in codes):
            return False
        if START_AGAIN in codes and not self.signalled:
            self.start()
            return False
        # A signal that came before a supervisor could catch it has ended that one.
        failed = [code if code > 0 else KILLED for code in codes if code and -code != self.signalled]
        self.code = min(failed) if failed else 0
        self.done.set()
        return True


class LocalQueue:
    """Runs jobs in a thread, at most `parallelism` at once."""

    def __init__(self, specs: Sequence[Spec], parallelism: int, echo: bool = False) -> None:
        self.handles = [LocalHandle(spec.name, spec.path, "", spec, echo) for spec in specs]
        self.parallelism = parallelism
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        waiting, running = list(self.handles), list[LocalHandle]()
        while waiting or running:
            while waiting and len(running) < self.parallelism:
                handle = waiting.pop(0)
                if handle.signalled:
                    handle.code = 0
                    handle.done.set()
                    continue
                handle.start()
                running.append(handle)
            running = [handle for handle in running if not handle.poll()]
            if running:
                running[0].done.wait(POLL_SECONDS)
