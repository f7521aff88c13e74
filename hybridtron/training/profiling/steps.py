"""The steps that are profiled."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hybridtron.errors import UserError

NUMBER = 3  # steps, by default
WARM_UP = 9  # steps before them, where the run has as many


@dataclass(frozen=True)
class ProfiledSteps:
    """Steps `first` to `last`, counted from 1."""

    first: int
    last: int

    @property
    def number(self) -> int:
        return self.last - self.first + 1


def check_profile_steps(text: str) -> tuple[int, int]:
    """Parse `FIRST-LAST` or one step, counted from 1. Raises UserError for anything else."""
    match = re.fullmatch(r"([0-9]{1,15})(?:-([0-9]{1,15}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise UserError(f"profile_steps = {text}: expected FIRST-LAST, such as 10-12, or one step, counted from 1")
    return first, last


def profiled_steps(text: str | None, done: int, steps: int) -> ProfiledSteps:
    """Return the steps to profile of a run that has `done` steps behind it and ends after `steps`.

    By default three, after nine that warm up; the last ones where fewer are left. Raises UserError for steps that are
    not trained.
    """
    if text is None:
        first = done + max(1, min(WARM_UP + 1, steps - done - NUMBER + 1))
        return ProfiledSteps(first, min(first + NUMBER - 1, steps))
    first, last = check_profile_steps(text)
    if first <= done or last > steps:
        raise UserError(f"profile_steps = {text}: expected steps that are trained, from {done + 1} to {steps}")
    return ProfiledSteps(first, last)
