"""The part of a fault campaign that acts inside a rank: it waits for the moment of each fault, and strikes.

`install` reads the plan that HYBRIDTRON_FAULTS names and wraps training. Each fault leaves a file in `fired/`, which
says when it happened and what the run had saved; a fault that has one does not happen again, as the next attempt passes
the same step. A gradient that is not finite comes back at its step, as one that the data causes would.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from hybridtron.faults import damage
from hybridtron.faults.plan import Fault

VARIABLE = "HYBRIDTRON_FAULTS"  # the plan: a JSON file
START_SECONDS = "HYBRIDTRON_FAULTS_START_SECONDS"  # within which a random moment of a start lies
ATTEMPT, RANK, SUPERVISOR = "HYBRIDTRON_ATTEMPT", "RANK", "HYBRIDTRON_PARENT"
YEARS = 365 * 24 * 3600.0
LONGEST_STEP = 0.05  # seconds after the beginning of a step within which a random moment lies
GRACE_SECONDS = 0.3
true_time = time.time

# Operations of Python's audit events at which a save is interrupted: event, and a test of its first two arguments.
EVENTS = {
    "draft": ("os.mkdir", lambda a, b: ".partial" in a),
    "shard opened": ("open", lambda a, b: a.endswith(".distcp") and ".partial" in a),
    "index": ("os.rename", lambda a, b: b.endswith(".metadata")),
    "manifest": ("os.rename", lambda a, b: b.endswith("manifest.json")),
    "rename": ("os.rename", lambda a, b: ".partial" in a and ".partial" not in b),
    "renamed": ("open", lambda a, b: "latest.new" in a),
    "latest": ("os.rename", lambda a, b: b.endswith("/latest")),
    "deletion": ("os.remove", lambda a, b: b.isdecimal()),  # in a folder that is deleted, by its descriptor
}


def write_plan(file: Path, run: Path, faults: tuple[Fault, ...]) -> None:
    """Write what `install` reads."""
    (file.parent / "fired").mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"run": str(run), "faults": [asdict(fault) for fault in faults]}))


def install() -> None:
    """Prepare this rank's faults, if there are any. Called before anything else is imported."""
    file = Path(os.environ[VARIABLE])
    plan = json.loads(file.read_text())
    rank = int(os.environ[RANK])
    faults = [Fault(**fields) for fields in plan["faults"] if fields["rank"] == rank]
    agent = Agent(Path(plan["run"]), file.parent / "fired", faults)
    agent.before_start()
    sys.addaudithook(agent.on_event)

    from hybridtron.faults.rank_callback import wrap_training

    wrap_training(agent)


class Agent:
    """The faults of this rank."""

    def __init__(self, run: Path, fired: Path, faults: list[Fault]) -> None:
        self.run, self.fired, self.faults = run, fired, faults
        self.rank = int(os.environ[RANK])
        self.attempt = int(os.environ.get(ATTEMPT, "1"))
        self.step = -1
        self.interrupted: Fault | None = None  # whose point of a save is awaited
        self.lasting: list[Fault] = []

    def before_start(self) -> None:
        """Set the moment at which this start is interrupted, where it is one that is to be."""
        for fault in self.faults:
            if self._armed(fault).exists() and not self._has_fired(fault):
                self._later(fault.draw * float(os.environ[START_SECONDS]), partial(self._die_of, fault))

    def before_step(self, step: int) -> None:
        """Strike where a fault is due at this step."""
        self.step = step
        for fault in list(self.lasting):
            if step >= fault.end:
                self._end(fault)
        for fault in self.faults:
            if fault.step == step and not self._has_fired(fault):
                self._strike(fault)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Kill the rank where the awaited operation of a save is about to happen."""
        fault = self.interrupted
        if fault is None or fault.point not in EVENTS or EVENTS[fault.point][0] != event:
            return
        first, second = ([str(each) for each in arguments[:2]] + ["", ""])[:2]
        if EVENTS[fault.point][1](first, second):
            self.interrupted = None
            self._die_of(fault)

    def on_write(self, stream: Any, content: Any) -> None:
        """Write a part of a tensor file and die, where that is awaited."""
        fault = self.interrupted
        if fault and fault.point == "shard half written" and str(stream.name).endswith(".distcp"):
            stream.write(memoryview(content)[: int(fault.draw * len(content))])
            self._die_of(fault)

    def _strike(self, fault: Fault) -> None:
        kind = fault.kind
        if kind == "kill":
            self._later(fault.draw * LONGEST_STEP, partial(self._die_of, fault))
        elif kind == "kill_saving":
            self.interrupted = fault
        elif kind == "preempt":
            if self._claim(fault):
                self._signal_all(signal.SIGTERM)
                self._later(fault.draw * GRACE_SECONDS, lambda: self._signal_all(signal.SIGKILL))
        elif kind == "kill_starting" and self._armed(fault).exists():  # a start that was over before its moment
            self._die_of(fault)
        elif kind == "kill_starting":  # the start after this one is interrupted
            self._armed(fault).write_text(json.dumps({"time": true_time(), "attempt": self.attempt}) + "\n")
            self._die()
        elif self._claim(fault):
            getattr(self, f"_{kind}", self._damage)(fault)

    def _damage(self, fault: Fault) -> None:
        """Damage checkpoints or `latest`, and die."""
        latest = self.run / "latest"
        if fault.kind == "latest_lost":
            latest.unlink()
        elif fault.kind == "latest_empty":
            latest.write_bytes(b"")
        elif fault.kind == "latest_dangling":
            latest.write_text("step_99999999\n")
        checkpoints = damage.newest_checkpoints(self.run)
        if fault.loses >= len(checkpoints):  # the next attempt must refuse to begin; then they are put back
            damage.copy_checkpoints(self.run)
        for checkpoint in checkpoints[: fault.loses]:
            file = damage.some_file(checkpoint, fault.point, fault.draw)
            if fault.kind == "file_lost":
                file.unlink()
            elif fault.kind == "truncate":
                damage.truncate(file, fault.draw)
            else:
                damage.flip_bit(file, fault.draw)
        self._die()

    def _kill_all(self, fault: Fault) -> None:
        self._signal_all(signal.SIGKILL)

    def _kill_node(self, fault: Fault) -> None:
        os.kill(int(os.environ[SUPERVISOR]), signal.SIGKILL)
        self._die()

    def _disk_full(self, fault: Fault) -> None:
        self.lasting.append(fault)
        damage.fill_disk(self.run.parent)

    def _file_limit(self, fault: Fault) -> None:
        self.lasting.append(fault)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(1 + fault.draw * 1000), hard))

    def _read_only(self, fault: Fault) -> None:
        self.lasting.append(fault)
        damage.make_read_only(self.run)

    def _vanished(self, fault: Fault) -> None:
        self.lasting.append(fault)
        damage.vanish(self.run)

    def _end(self, fault: Fault) -> None:
        """End a fault that lasts."""
        self.lasting.remove(fault)
        if fault.kind == "file_limit":
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        else:
            damage.undo(self.run)

    def _hang_spin(self, fault: Fault) -> None:
        while True:
            pass

    def _hang_stop(self, fault: Fault) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)

    def _pause(self, fault: Fault) -> None:
        command = f"sleep 1; kill -CONT {os.getpid()}"
        subprocess.Popen(["sh", "-c", command], start_new_session=True, stdin=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _clock_jump(self, fault: Fault) -> None:
        years = (-30.0, -1.0, -0.01, 0.01, 1.0, 10.0)[int(fault.draw * 6)]
        time.time = lambda: true_time() + years * YEARS

    def _non_finite(self, fault: Fault) -> None:
        """Do nothing here: the callback spoils the gradient at each passage of the step."""

    def non_finite_now(self, step: int) -> bool:
        """Return whether the gradient of this step is spoilt."""
        return any(fault.kind == "non_finite" and fault.step == step for fault in self.faults)

    def _armed(self, fault: Fault) -> Path:
        return self.fired / f"{fault.number}.armed"

    def _die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def _die_of(self, fault: Fault) -> None:
        """End this process where the fault has not happened yet."""
        if self._claim(fault):
            self._die()

    def _signal_all(self, number: int) -> None:
        """Send a signal to all ranks and, where supervisors run them, to those first."""
        files = (self.run / "launch" / f"attempt_{self.attempt}").glob("rank_*.json")
        ids = [json.loads(file.read_text()) for file in files]
        if not ids:  # forked ranks are a process group
            os.killpg(0, number)
            return
        own = os.getpid()
        for process in [each["supervisor"] for each in ids] + [each["pid"] for each in ids if each["pid"] != own]:
            if number == signal.SIGKILL or process not in [each["pid"] for each in ids]:
                os.kill(process, number)
        if number == signal.SIGKILL:
            self._die()

    def _later(self, seconds: float, action: Any) -> None:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()

    def _has_fired(self, fault: Fault) -> bool:
        return (self.fired / f"{fault.number}.json").exists()

    def _claim(self, fault: Fault) -> bool:
        """Record that the fault happens now; return False where it has happened before."""
        newest = damage.newest_checkpoints(self.run)
        latest = self.run / "latest"
        row = {
            "time": true_time(),
            "attempt": self.attempt,
            "step": max(self.step, 0),
            "checkpoints": [path.name for path in newest],
            "latest": latest.read_text().strip() if latest.is_file() else "",
        }
        try:
            with (self.fired / f"{fault.number}.json").open("x") as file:
                file.write(json.dumps(row) + "\n")
        except FileExistsError:
            return False
        return True
