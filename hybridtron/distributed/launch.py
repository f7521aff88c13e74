"""Start several processes of one command on this machine, pass signals on, and end all when one fails."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
GRACE_SECONDS = 30.0

logger = logging.getLogger(__name__)


def launch(command: Sequence[str], num_processes: int) -> int:
    """Run the command num_processes times as ranks of one job; return the first non-zero exit code, else 0.

    Ranks meet through a file, so that no port is taken; each is in a session of its own, so that a Ctrl-C at the
    terminal reaches it once, through this process. Rank 0 shares the terminal; the others' output is errors only.
    """
    with tempfile.TemporaryDirectory(prefix="hybridtron-") as folder:
        processes = [_start(command, rank, num_processes, Path(folder)) for rank in range(num_processes)]
        previous = {number: signal.signal(number, _forward(processes)) for number in SIGNALS}
        try:
            return _wait(processes)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
            for number, handler in previous.items():
                signal.signal(number, handler)


def _start(command: Sequence[str], rank: int, num_processes: int, folder: Path) -> subprocess.Popen[bytes]:
    env = {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_processes),
        "HYBRIDTRON_RENDEZVOUS": f"file://{folder / 'rendezvous'}",
        "HYBRIDTRON_PARENT": str(os.getpid()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, _usable_cores() // num_processes))),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0"),
    }
    output = None if rank == 0 else subprocess.DEVNULL
    return subprocess.Popen(command, env=env, stdout=output, stdin=subprocess.DEVNULL, start_new_session=True)


def _usable_cores() -> int:
    """Count the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forward(processes: Sequence[subprocess.Popen[bytes]]) -> Callable[[int, FrameType | None], None]:
    """Make a handler that passes a signal on to the running processes."""

    def handler(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    return handler


def _wait(processes: list[subprocess.Popen[bytes]]) -> int:
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
            if result:
                logger.info("rank %d ended with %d", processes.index(process), result)
            if result and not code:
                code, deadline = (result if result > 0 else 128 - result), time.monotonic() + GRACE_SECONDS
    return code
