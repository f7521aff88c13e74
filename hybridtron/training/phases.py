"""The phases of training, and the seconds that each took."""

from __future__ import annotations

import time

START, STEP, EVALUATION, SAVE, END = "start", "step", "evaluation", "save", "end"


class Phases:
    """A clock that is always in one phase, at first `start`. A change of the system's time does not change it."""

    def __init__(self) -> None:
        self.phase, self.since = START, time.monotonic()
        self._seconds: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """End the current phase and begin another."""
        self._seconds, self.phase, self.since = self.seconds(), phase, time.monotonic()

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each phase so far."""
        spent = self._seconds.get(self.phase, 0.0) + time.monotonic() - self.since
        return self._seconds | {self.phase: spent}
