"""`--profile`: a trace of some steps, and a table of where their time goes, in profile/ of the run folder."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from hybridtron.training.callbacks.base import FileWriter, TrainContext
from hybridtron.training.profiling.clock import PartClock
from hybridtron.training.profiling.parts import measured
from hybridtron.training.profiling.result import Profile, write_profile
from hybridtron.training.profiling.steps import ProfiledSteps

if TYPE_CHECKING:
    from pathlib import Path

    from hybridtron.training.loop import Trainer


class Profiler(FileWriter):
    """Profile this process in some steps, each with what follows it until the next one begins.

    Before and after them training is as without it. Set `trainer` before training.
    """

    trainer: Trainer

    def __init__(self, folder: Path, steps: ProfiledSteps) -> None:
        self.folder, self.steps = folder / "profile", steps
        self._open = ExitStack()  # what is set up in the profiled steps
        self._clock: PartClock | None = None
        self._trace: profile | None = None

    def before_step(self, context: TrainContext) -> None:
        """Warm torch's profiler up, begin, mark the next step, or end before the step that follows the last one."""
        step, device = context.state.step + 1, context.parallel_context.device
        if step == self.steps.first - 1:
            self._trace = _profiler(device, schedule=schedule(wait=0, warmup=1, active=self.steps.number))
            self._start(self._trace)
        elif step == self.steps.first:
            if self._trace is None:
                self._trace = _profiler(device)
                self._start(self._trace)
            else:
                self._trace.step()
            self._clock = PartClock(device)
            self._open.callback(self._clock.close)
            self._open.enter_context(measured(self.trainer, self._clock))
        elif self._clock and self._trace and step <= self.steps.last:
            self._trace.step()
        elif self._clock:
            self._finish(context)

    def on_train_end(self, context: TrainContext) -> None:
        """End after the last step of the run."""
        if self._clock:
            self._finish(context)
        elif context.state.step < self.steps.first:
            context.print_line(f"no profile: training ended before step {self.steps.first}")

    def close(self) -> None:
        """Stop what is still running."""
        self._open.close()
        self._clock = None

    def _start(self, trace: profile) -> None:
        """Start torch's profiler."""
        trace.start()
        self._open.callback(trace.stop)

    def _finish(self, context: TrainContext) -> None:
        """Print the table and write the files."""
        assert self._clock
        assert self._trace
        seconds, parallel = self._clock.seconds(), context.parallel_context
        self.close()
        device = torch.cuda.get_device_name(parallel.device) if parallel.device.type == "cuda" else "CPU"
        result = Profile(ProfiledSteps(self.steps.first, context.state.step), seconds, device, parallel.world_size)
        context.print_line(result.text())
        write_profile(self.folder, result, self._trace)


def _profiler(device: torch.device, **options: Any) -> profile:
    """Return torch's profiler of CPU and, where that is used, CUDA."""
    if device.type == "cpu":
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # its library prints when it starts and stops
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    return profile(activities=activities, **options)
