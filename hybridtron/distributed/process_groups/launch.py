"""Start several processes of one command on this machine, pass signals on, and end all when one fails."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 30.0  # for the others to end by themselves, after one failed
GRACE_AFTER_KILL_SECONDS = 5.0  # after one was killed; they have lost what they were doing
RENDEZVOUS_BYTES = 8192  # of a process at most, in the file through which ranks meet; half of it was measured


def launch(
    command: Sequence[str], num_processes: int, extra_env: Mapping[str, str] | None = None, *, silent: bool = False
) -> int:
    """Run the command num_processes times as ranks of one job; return the first non-zero exit code, else 0.

    Ranks meet through a file, so that no port is taken; each is in a session of its own, so that a Ctrl-C at the
    terminal reaches it once, through this process. Rank 0 shares the terminal; the others' output is errors only,
    and with `silent` nothing of any. `extra_env` is added to the environment.

    Raises OSError where that file cannot be as large as it will be: ranks would wait for one another without end.
    """
    with tempfile.TemporaryDirectory(prefix="hybridtron-") as folder:
        _require_space(Path(folder) / "rendezvous", num_processes * RENDEZVOUS_BYTES)
        processes: list[subprocess.Popen[bytes]] = []
        forwarded: set[int] = set()
        previous = {number: signal.signal(number, _forward(processes, forwarded)) for number in caught_signals()}
        try:
            for rank in range(num_processes):
                processes.append(_start(command, rank, num_processes, Path(folder), extra_env or {}, silent))
            return _wait(processes, forwarded)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _require_space(file: Path, size: int) -> None:
    """Raise OSError, with the file's name, where it cannot be written at this size; leave no file behind."""
    try:
        file.write_bytes(bytes(size))
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        file.unlink(missing_ok=True)


def _start(
    command: Sequence[str], rank: int, num_processes: int, folder: Path, extra_env: Mapping[str, str], silent: bool
) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "PYTHONPATH": _search_path(),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "HYBRIDTRON_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
        "HYBRIDTRON_PARENT": str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // num_processes))),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"),
        **extra_env,
    }
    output = None if rank == 0 and not silent else subprocess.DEVNULL
    errors = subprocess.DEVNULL if silent else None
    return subprocess.Popen(
        command, env=env, stdout=output, stderr=errors, stdin=subprocess.DEVNULL, start_new_session=True
    )


def _search_path() -> str:
    """Return PYTHONPATH for a rank: without entries that mean the current folder, with that of a checkout of this."""
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    root = str(Path(__file__).parents[3])
    installed = Path(root).name in ("site-packages", "dist-packages")  # of whatever environment this one can see
    return os.pathsep.join(given if installed else [*given, root])


def usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def python_command(*arguments: str) -> list[str]:
    """Return the command line of a process of this program, which imports nothing from the current folder."""
    return [sys.executable, "-P", "-m", "hybridtron", *arguments]


def signal_at_death_of_parent(number: int, parent: int | None = None) -> None:
    """Have Linux send this process a signal when the process that started it ends; end if that has already ended."""
    if not sys.platform.startswith("linux"):
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, number)
    if os.getppid() != (parent or os.getppid()):
        os._exit(1)  # it ended before the line above


def caught_signals() -> list[signal.Signals]:
    """Return the signals that end a run, without a SIGHUP that nohup has told this process to ignore."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


def _forward(
    processes: Sequence[subprocess.Popen[bytes]], forwarded: set[int]
) -> Callable[[int, FrameType | None], None]:
    """Make a handler that passes a signal on to the running processes."""

    def handler(number: int, frame: FrameType | None) -> None:
        forwarded.add(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    return handler


def _wait(processes: list[subprocess.Popen[bytes]], forwarded: set[int]) -> int:
    """Wait for all; after a failure end the others, which may hang on a collective, when a grace period is over."""
    running, code, deadline = list(processes), 0, float("inf")
    while running:
        for process in list(running):
            try:
                result = process.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                if time.monotonic() > deadline:
                    process.kill()
                continue
            running.remove(process)
            if result and not code:
                grace = GRACE_SECONDS if result > 0 else GRACE_AFTER_KILL_SECONDS
                code, deadline = (result if result > 0 else 128 - result), time.monotonic() + grace
                if result < 0 and -result not in forwarded:
                    _report(f"rank {processes.index(process)} was killed (signal {-result})")
    return code


def _report(text: str) -> None:
    """Print a line, also where the terminal is gone."""
    with contextlib.suppress(OSError):
        print(f"hybridtron: {text}", file=sys.stderr, flush=True)
