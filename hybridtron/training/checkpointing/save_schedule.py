"""The steps after which a run is saved."""

from __future__ import annotations

import time
from collections.abc import Callable

from hybridtron.training.config import RunConfig


class SaveSchedule:
    """Decide, in all processes alike, when a run is saved: by steps, and by the clock of the first process.

    `largest` returns the largest of the numbers that all processes give it.
    """

    def __init__(self, config: RunConfig, is_main: bool, largest: Callable[[int], int]) -> None:
        self.section, self.steps = config.checkpoint, config.train.steps
        self.is_main, self.largest = is_main, largest
        self.last_due = time.monotonic()  # not changed with the system's time

    def is_due(self, step: int) -> bool:
        """Return whether the run is saved after this step, when nothing stops it there. Called after each step."""
        section = self.section
        due = step == self.steps or any(
            every and step % every == 0 for every in (section.save_every, section.keep_every)
        )  # fmt: skip
        if section.save_every_minutes and not due:
            overdue = time.monotonic() - self.last_due >= 60 * section.save_every_minutes
            due = self.largest(int(overdue and self.is_main)) == 1
        if due:
            self.last_due = time.monotonic()
        return due
