"""Effective training time: how much of a run's time went into steps that were not lost, and how often to save.

Read from attempts.jsonl. A step is lost where a later attempt starts before it. The time between two attempts counts
where the launcher restarted the run, not where a person did. Imports no torch.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hybridtron.reporting.numbers import duration, plural
from hybridtron.training.phases import SAVE, STEP
from hybridtron.training.run_folder.attempts import FAILED, FINISHED, Attempt, last_progress, read_attempts

UNKNOWN_CAUSE = "killed, or its machine lost"


@dataclass(frozen=True)
class Restart:
    """An attempt that continued one which had not finished."""

    attempt: int
    step: int
    cause: str
    lost_steps: int
    seconds_to_first_step: float | None  # since the end of the attempt before


@dataclass(frozen=True)
class EffectiveTime:
    """What became of the time of a run's attempts."""

    wall_seconds: float
    productive_seconds: float
    steps: int  # that were not lost
    lost_steps: int
    restarts: tuple[Restart, ...]
    saves: int
    save_seconds: float  # for which all saves together stopped training
    mttf_seconds: float | None  # mean time to failure, given or observed

    @property
    def share(self) -> float | None:
        """Return productive time as a share of the wall time, from 0 to 1."""
        return min(1.0, self.productive_seconds / self.wall_seconds) if self.wall_seconds > 0 else None

    @property
    def suggested_seconds(self) -> float | None:
        """Return the saving interval that loses least, sqrt(2 cost MTTF) (Young 1974; Daly 2006), where it is known."""
        if not self.saves or self.mttf_seconds is None:
            return None
        return math.sqrt(2 * self.save_seconds / self.saves * self.mttf_seconds)

    @property
    def suggested_steps(self) -> int | None:
        """Return the suggested saving interval in whole steps, at least one."""
        seconds = self.suggested_seconds
        if seconds is None or not self.productive_seconds or not self.steps:
            return None
        return max(1, round(seconds * self.steps / self.productive_seconds))

    def as_json(self) -> dict[str, Any]:
        """Return all numbers for summary.json."""
        seconds = self.suggested_seconds
        suggested = {"suggested_save_every": self.suggested_steps, "suggested_minutes": seconds and seconds / 60}
        return asdict(self) | {"restarts": [asdict(each) for each in self.restarts], "share": self.share} | suggested

    def lines(self) -> list[str]:
        """Return it in words; nothing for a run that was neither restarted nor saved before its end."""
        share, found = self.share, []
        if share is not None and (self.restarts or self.saves > 1):
            found.append(f"effective training time: {share:.0%} of {duration(self.wall_seconds)}{self._losses()}")
        seconds, steps = self.suggested_seconds, self.suggested_steps
        if seconds is not None and steps is not None and self.mttf_seconds is not None:
            found.append(
                f"a save stops training for {duration(self.save_seconds / self.saves)}; with a failure every "
                f"{duration(self.mttf_seconds)}, save every {plural(steps, 'step')} ({duration(seconds)})"
            )
        return found

    def _losses(self) -> str:
        """Return restarts with their causes, lost steps and saves, after a colon or semicolons."""
        saved = f"; {plural(self.saves, 'save')} took {duration(self.save_seconds)}" if self.saves else ""
        if not self.restarts:
            return saved
        causes = Counter(restart.cause for restart in self.restarts)
        listed = ", ".join(cause if count == 1 else f"{cause} ({count} times)" for cause, count in causes.items())
        waits = [each.seconds_to_first_step for each in self.restarts if each.seconds_to_first_step is not None]
        wait = f", at most {duration(max(waits))} to the first step" if waits else ""
        lost = f", {plural(self.lost_steps, 'step')} trained again" if self.lost_steps else ""
        return f"; {plural(len(self.restarts), 'restart')} ({listed}){lost}{wait}{saved}"


def read_effective_time(folder: Path, mttf_hours: float | None = None) -> EffectiveTime:
    """Compute the effective time of the run in a folder, also while it runs. `mttf_hours` replaces what is observed."""
    return effective_time_so_far(folder, read_attempts(folder), mttf_hours)


def effective_time_so_far(
    folder: Path, attempts: Sequence[Attempt], mttf_hours: float | None = None
) -> EffectiveTime:  # fmt: skip
    """Compute the effective time of the attempts read from a run folder, of which the last one may be running."""
    if attempts and attempts[-1].ended is None:
        end_step, ended = last_progress(folder, attempts[-1])
        attempts = [*attempts[:-1], replace(attempts[-1], end_step=end_step, ended=ended)]
    return effective_time(attempts, mttf_hours)


def effective_time(attempts: Sequence[Attempt], mttf_hours: float | None = None) -> EffectiveTime:
    """Compute the effective time of attempts; the last one may be running."""
    wall = productive = save_seconds = 0.0
    steps = lost = failures = 0
    restarts = []
    next_start: float = math.inf  # the first step of any later attempt
    for attempt in reversed(attempts):
        end_step = _end_step(attempt)
        kept = max(0, min(end_step, next_start) - attempt.start_step)
        next_start = min(next_start, attempt.start_step)
        steps += int(kept)
        lost += max(0, end_step - attempt.start_step) - int(kept)
        wall += _seconds_of(attempt)
        productive += _step_seconds(attempt) * kept
        save_seconds += _last_seconds(attempt).get(SAVE, 0.0)
        failures += attempt.outcome == FAILED
    attempt_seconds = wall
    for before, attempt in itertools.pairwise(attempts):
        gap = max(0.0, attempt.started - before.ended) if before.ended is not None else 0.0
        if attempt.restart_cause:
            wall += gap
        if before.outcome != FINISHED:
            restarts.append(_restart(before, attempt))
    observed = attempt_seconds / failures if failures else None
    return EffectiveTime(
        wall_seconds=wall,
        productive_seconds=min(productive, wall),
        steps=steps,
        lost_steps=lost,
        restarts=tuple(restarts),
        saves=sum(len(attempt.saves) for attempt in attempts),
        save_seconds=save_seconds,
        mttf_seconds=observed if mttf_hours is None else 3600 * mttf_hours,
    )


def _restart(before: Attempt, attempt: Attempt) -> Restart:
    """Return how an attempt continued the one before it."""
    since = before.ended if attempt.restart_cause and before.ended is not None else attempt.started
    waited = None if attempt.first_step_at is None else max(0.0, attempt.first_step_at - since)
    return Restart(
        attempt.number,
        attempt.start_step,
        before.cause or attempt.restart_cause or UNKNOWN_CAUSE,
        max(0, _end_step(before) - attempt.start_step),
        waited,
    )


def _end_step(attempt: Attempt) -> int:
    """Return the last step that an attempt is known to have trained."""
    saved = max((save.step for save in attempt.saves), default=attempt.start_step)
    return max(saved, attempt.start_step if attempt.end_step is None else attempt.end_step)


def _last_seconds(attempt: Attempt) -> dict[str, float]:
    """Return the seconds of each phase at the end of an attempt, or where that is not known at its last save."""
    return attempt.seconds or (attempt.saves[-1].seconds if attempt.saves else {})


def _seconds_of(attempt: Attempt) -> float:
    """Return the wall time of an attempt, where possible by a clock that does not jump."""
    if attempt.seconds:
        return sum(attempt.seconds.values())
    return max(0.0, attempt.ended - attempt.started) if attempt.ended is not None else 0.0


def _step_seconds(attempt: Attempt) -> float:
    """Return the mean seconds of a step, without saves and evaluations where those were recorded."""
    last = attempt.saves[-1] if attempt.saves else None
    trained = _end_step(attempt) - attempt.start_step
    if attempt.seconds and trained > 0:
        return attempt.seconds.get(STEP, 0.0) / trained
    if last and last.step > attempt.start_step:
        return last.seconds.get(STEP, 0.0) / (last.step - attempt.start_step)
    if attempt.first_step_at is not None and attempt.ended is not None and trained > 1:
        return max(0.0, attempt.ended - attempt.first_step_at) / (trained - 1)
    return 0.0
