"""Timing on a device, within a budget of seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Step = Callable[[], object]


class OutOfTime(Exception):
    """A part of the benchmark has used up its seconds."""


class Budget:
    """Seconds for a part. Parts may begin rows while some are left."""

    def __init__(self, seconds: float) -> None:
        self.ends = time.monotonic() + seconds

    def require(self, seconds: float = 0.0) -> None:
        """Raise OutOfTime where fewer seconds are left."""
        if self.ends - time.monotonic() < seconds:
            raise OutOfTime("left out: the part's seconds are used up")


def seconds(step: Step, device: torch.device) -> float:
    """Return the seconds of one call, the work that it gives to the device included."""
    if device.type != "cuda":
        start = time.perf_counter()
        step()
        return time.perf_counter() - start
    before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    before.record()
    step()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def interleaved(
    steps: Mapping[str, Step], device: torch.device, repeats: int, budget: Budget, warmup: int = 3
) -> dict[str, list[float]]:
    """Time the steps in turn, so that a drifting clock favours none; at least one turn counts."""
    for _ in range(warmup):
        for step in steps.values():
            step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats):
        if turn:
            try:
                budget.require()
            except OutOfTime:
                break
        for name, step in steps.items():
            found[name].append(seconds(step, device))
    return found


def median(values: list[float]) -> float:
    return statistics.median(values)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median over turns of their seconds over ours: above one we are faster."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
