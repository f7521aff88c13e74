"""A clock that is always in one part of a training step."""

from __future__ import annotations

import itertools
import time
from contextlib import AbstractContextManager
from typing import Any

import torch

OTHER, EVALUATION = "other", "evaluation"


class PartClock:
    """Measure how long each part takes, without the parts inside it; their times add up to the time that passed.

    On CUDA the times are those at which the current stream reaches the changes of part, so that nothing waits for the
    device. There, each part is an NVTX range as well, named by `label` where one is given. Inside `evaluation` all time
    is the evaluation's. Parts that are begun and ended are ranges of a running torch profiler, too.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self._parts = [OTHER]
        self._changes: list[tuple[str, Any]] = [(OTHER, self._now())]  # each part that was entered, and when
        self._profiler_ranges: list[AbstractContextManager[None]] = []
        self._nvtx_range: int | None = None

    def begin(self, part: str, label: str | None = None) -> None:
        """Enter a part inside the current one."""
        part = EVALUATION if self._parts[-1] == EVALUATION else part
        profiler_range = torch.profiler.record_function(label or part)
        profiler_range.__enter__()
        self._profiler_ranges.append(profiler_range)
        self._parts.append(part)
        self._enter(part, label)

    def end(self) -> None:
        """Return to the part around the current one."""
        self._profiler_ranges.pop().__exit__(None, None, None)
        self._parts.pop()
        self._enter(self._parts[-1])

    def switch(self, part: str, label: str | None = None) -> None:
        """Put another part in place of the current one. May be called by another thread than `begin`."""
        self._parts[-1] = part
        self._enter(part, label)

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent in each part so far, in the order in which they were first entered."""
        changes = [*self._changes, ("", self._now())]
        if self.on_gpu:
            torch.cuda.synchronize()
        spent: dict[str, float] = {}
        for (part, since), (_, until) in itertools.pairwise(changes):
            passed = since.elapsed_time(until) / 1000 if self.on_gpu else until - since
            spent[part] = spent.get(part, 0.0) + passed
        return spent

    def close(self) -> None:
        """End what is open."""
        while self._profiler_ranges:
            self.end()
        if self._nvtx_range is not None:
            torch.cuda.nvtx.range_end(self._nvtx_range)
            self._nvtx_range = None

    def _enter(self, part: str, label: str | None = None) -> None:
        self._changes.append((part, self._now()))
        if self.on_gpu:
            if self._nvtx_range is not None:
                torch.cuda.nvtx.range_end(self._nvtx_range)
            self._nvtx_range = torch.cuda.nvtx.range_start(label or part)

    def _now(self) -> Any:
        """Return the time, or on CUDA an event of the current stream."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
