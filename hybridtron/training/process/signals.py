"""Stop at a signal: after the current step at the first one, at once at the second."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from hybridtron.distributed.process_groups.launch import caught_signals
from hybridtron.errors import with_caller_names
from hybridtron.training.process.heartbeat import is_supervised

# A scheduler that signals every process of a job reaches a rank directly and through its launcher.
ECHO_SECONDS = 0.25
CLEAR_LINE, SHOW_CURSOR = "\r\x1b[2K", "\x1b[?25h"  # terminal codes; a progress bar hides the cursor


class StopRequest:
    """`number` is the signal that asked to stop, or 0."""

    def __init__(self, prints: bool) -> None:
        self.number = 0
        self.since = 0.0
        self.prints = prints
        self.received: list[int] = []
        self.is_handling = False

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle signals one after another: Python calls a handler also while another one runs."""
        self.received.append(number)
        while self.received and not self.is_handling:
            self.is_handling = True
            first, self.received[:1] = self.received[:1], []
            for each in first:
                self._handle(each)
            self.is_handling = False

    def _handle(self, number: int) -> None:
        again = "press Ctrl-C again" if number == signal.SIGINT else "signal again"
        if not self.number:
            self.number, self.since = number, time.monotonic()
            ends = "" if is_supervised() else f"; {again} to end at once without saving"
            self._print(f"stopping after this step{ends}")
        elif is_supervised():  # a scheduler sends several signals; the supervisor ends what takes too long
            return
        elif number != self.number or time.monotonic() - self.since > ECHO_SECONDS:
            self._print("ended at once, without saving; resume=True continues from the last checkpoint")
            os._exit(128 + number)

    def _print(self, text: str) -> None:
        """Write a line to standard error without Python's buffers, which the signal may have interrupted."""
        if self.prints:
            take_from_bar = CLEAR_LINE + SHOW_CURSOR if os.isatty(2) else ""
            with contextlib.suppress(OSError):
                os.write(2, f"{take_from_bar}{with_caller_names(text)}\n".encode())


@contextlib.contextmanager
def stop_requests(prints: bool = True) -> Iterator[StopRequest]:
    """Catch SIGTERM, SIGHUP, SIGINT, SIGUSR1 and SIGUSR2 while the block runs; one of several processes `prints`."""
    request = StopRequest(prints)
    if threading.current_thread() is not threading.main_thread():  # only that one may handle signals
        yield request
        return
    previous = {number: signal.signal(number, request.receive) for number in caught_signals()}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
