"""The progress of long work: bars on a terminal, lines elsewhere. All on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

from hybridtron.errors import with_caller_names
from hybridtron.reporting.numbers import byte_size, duration

MIB = 2**20


class _Console(Console):
    """Console that prints nothing more once its terminal, or the reader of its pipe, is gone."""

    def on_broken_pipe(self) -> None:
        """Go on without output; what else writes to standard error finds a file that takes everything."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def _check_buffer(self) -> None:
        try:
            super()._check_buffer()
        except OSError:
            self.on_broken_pipe()


class ProgressView:
    """A bar for each running task on a terminal; elsewhere a line for each task at most every so many seconds."""

    def __init__(self, quiet: bool = False, seconds_between_lines: float = 60) -> None:
        self.console = _Console(stderr=True, highlight=False, quiet=quiet)
        self.seconds_between_lines = seconds_between_lines
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.printed: dict[str, float] = {}  # when the last line of a task was due
        self.began: dict[str, tuple[float, int]] = {}  # when a task was first seen, and how much of it was done
        if sys.stderr.isatty() and not quiet:
            columns = (
                TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[status]}", markup=False), TimeElapsedColumn(), TimeLeftColumn(),
            )  # fmt: skip
            self.bars = Progress(*columns, console=self.console)

    def update(self, name: str, done: int, total: int, status: str = "", text: str | None = None) -> None:
        """Show how much of a task is done. `text` replaces the line that is printed without a terminal."""
        if self.bars:
            self.bars.start()
            if name not in self.tasks:
                self.tasks[name] = self.bars.add_task(name, total=total, status="")
            self.bars.update(self.tasks[name], total=total, completed=done, status=status)
            return
        now = time.monotonic()
        self.began.setdefault(name, (now, done))
        if now - self.printed.setdefault(name, now) >= self.seconds_between_lines:
            self.printed[name] = now
            parts = (name, f"step {done}/{total}", status, self._time_left(name, done, total, now))
            self.print(text or "  ".join(filter(None, parts)))

    def finish(self, name: str) -> None:
        """Remove the bar of a task."""
        if self.bars and name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))

    def print(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(with_caller_names(text), markup=False, soft_wrap=True)

    def close(self) -> None:
        """Stop drawing bars."""
        if self.bars:
            self.bars.stop()

    def _time_left(self, name: str, done: int, total: int, now: float) -> str:
        """Return the longest time that the rest can take, once there is a pace."""
        began, before = self.began[name]
        if done == before:
            return ""
        return f"at most {duration((now - began) / (done - before) * (total - done))} left"


@contextlib.contextmanager
def byte_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of the block, which calls the function with the bytes done and those of all."""
    view = ProgressView()

    def update(done: int, total: int) -> None:
        text = f"{name}  {byte_size(done)} of {byte_size(total)}"
        view.update(name, done // MIB, total // MIB, "MiB", text)

    try:
        yield update
    finally:
        view.close()
