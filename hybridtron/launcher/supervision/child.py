"""The process of one rank: started, listened to, signalled and ended by its supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridtron.distributed.process_groups.launch import usable_cores
from hybridtron.files import append_text, open_to_write
from hybridtron.launcher.job import Spec
from hybridtron.launcher.supervision.attempts import Attempt
from hybridtron.launcher.supervision.task import Task
from hybridtron.training.run_folder.attempts import CAUSE_VARIABLE, NUMBER_VARIABLE

LONGEST_CAUSE = 300  # characters
TAIL = 4096  # bytes of a log in which its last line is sought


@dataclass
class Child:
    """A running rank. `beat_at` is when it last showed progress (time.monotonic)."""

    process: subprocess.Popen[bytes]
    log: Path
    pipe: int
    log_start: int
    step: int = 0
    phase: str = "starting"
    finished: bool = False
    has_begun: bool = False  # a step is done
    is_catching: bool = False  # signals, rather than ignoring them until it can save
    lost_peer: bool = False
    cause: str | None = None
    beat_at: float = field(default_factory=time.monotonic)
    _rest: bytes = b""

    def read_beats(self) -> None:
        """Take in what the rank has sent since the last call."""
        while True:
            try:
                content = os.read(self.pipe, 65536)
            except BlockingIOError:
                return
            if not content:
                return
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):
                    self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        self.beat_at = time.monotonic()
        self.step, self.phase = message.get("step", self.step), message.get("phase", self.phase)
        self.is_catching = True
        self.has_begun = self.has_begun or self.phase in ("step done", "saved", "end")
        self.finished = self.finished or bool(message.get("finished"))
        self.cause = message.get("cause") or self.cause
        self.lost_peer = self.lost_peer or bool(message.get("lost_peer"))

    def signal(self, number: int) -> None:
        """Send a signal, if the rank still runs."""
        if self.process.poll() is None:
            self.process.send_signal(number)

    def kill(self) -> None:
        """End the rank and the processes that it started, at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def is_stopped(self) -> bool:
        """Return whether a signal such as SIGSTOP has stopped the process."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] in ("T", "t")

    def last_line(self) -> str | None:
        """Return the last line that the rank has printed, such as that of an exception."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self.log_start, end - TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            return lines[-1].removeprefix("hybridtron: ")[:LONGEST_CAUSE] if lines else None
        return None

    def close(self) -> None:
        os.close(self.pipe)


def log_file(spec: Spec, rank: int) -> Path:
    """Return the file that holds all output of a rank."""
    return spec.path / "logs" / f"rank_{rank:05d}.log"


def start_child(spec: Spec, task: Task, attempt: Attempt, processes: int) -> Child:
    """Start this task's rank of an attempt; its output goes to the end of its log."""
    log = log_file(spec, task.rank)
    append_text(log, f"=== attempt {attempt.number}, {task.place}, {time.strftime('%Y-%m-%d %H:%M:%S %z')}\n")
    listening, sending = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    with open_to_write(log, os.O_APPEND) as output:
        start = output.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            spec.command,
            env=_environment(spec, task, attempt, processes, sending),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=[sending],
            preexec_fn=_ignore_signals if spec.is_training else None,
        )
    os.close(sending)
    return Child(process, log, listening, start)


def _ignore_signals() -> None:
    """Ignore the signals of a scheduler, which reach all processes of a job, until training can save at them."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _environment(spec: Spec, task: Task, attempt: Attempt, processes: int, pipe: int) -> dict[str, str]:
    """Return the variables of a rank."""
    per_node = spec.processes_per_node
    threads = spec.config.cpus_per_process or max(1, usable_cores() // per_node)
    env = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)), **spec.config.environment}
    env |= {
        "RANK": str(task.rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_RANK": str(task.local_rank),
        "LOCAL_WORLD_SIZE": str(per_node),
        "HYBRIDTRON_RENDEZVOUS": f"publish://{attempt.rendezvous}",
        "HYBRIDTRON_ADDRESS": task.address,
        "HYBRIDTRON_COLLECTIVE_SECONDS": str(spec.config.collective_seconds),
        "HYBRIDTRON_HEARTBEAT": str(pipe),
        NUMBER_VARIABLE: str(attempt.number),
        "HYBRIDTRON_PARENT": str(os.getpid()),
    }
    if cause := attempt.restart_cause():
        env[CAUSE_VARIABLE] = cause
    if task.num_nodes == 1:
        env.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    return env
