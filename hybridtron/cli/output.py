"""What verbs write to the terminal, and which process of a run does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any, Protocol

from hybridtron.files import json_text

LAUNCHER = "HYBRIDTRON_PARENT"  # the variable by which --nproc gives its process id to the processes that it starts


class Result(Protocol):
    """A result with a form for programs; people see what `hybridtron.reporting.shown.show` prints."""

    def as_json(self) -> dict[str, Any]: ...


def print_result(result: Result, as_json: bool) -> None:
    """Print a result as JSON or as people read it."""
    if as_json:
        print(json_text(result.as_json()))
        return
    from hybridtron.reporting.shown import show
    from hybridtron.reporting.table import terminal

    show(result, terminal())


def is_reporting_process() -> bool:
    """Return whether this process prints errors: only rank 0 of the processes that --nproc started, else each."""
    return LAUNCHER not in os.environ or os.environ.get("RANK") == "0"


@contextlib.contextmanager
def terminating_signal_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, with which a cluster ends its jobs."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
