"""Being told to stop: the first signal asks, a second one is obeyed at once."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from hybridtron.distributed.launch import SIGNALS

# A scheduler that signals every process of a job reaches a rank directly and through its launcher.
ECHO_SECONDS = 0.25


class StopRequest:
    """`number` is the signal that asked to stop, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self.since = 0.0

    def receive(self, number: int, frame: FrameType | None) -> None:
        if not self.number:
            self.number, self.since = number, time.monotonic()
        elif number != self.number or time.monotonic() - self.since > ECHO_SECONDS:
            os._exit(128 + number)


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 while the block runs."""
    request = StopRequest()
    previous = {number: signal.signal(number, request.receive) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
