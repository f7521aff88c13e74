"""Run one job on this machine, in front of the user."""

from __future__ import annotations

import signal
from types import FrameType

from hybridtron.distributed.process_groups.launch import caught_signals
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Job
from hybridtron.launcher.schedulers.local import LocalHandle
from hybridtron.launcher.submit import submit


def run_local(job: Job, launch: LaunchConfig) -> int:
    """Run a job to its end and print what its first rank prints; return the exit code. Signals are passed on."""
    (handle,) = submit([job], launch, echo=True)
    assert isinstance(handle, LocalHandle)

    def forward(number: int, frame: FrameType | None) -> None:
        handle.send_signal(number)

    previous = {number: signal.signal(number, forward) for number in caught_signals()}
    try:
        return handle.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
