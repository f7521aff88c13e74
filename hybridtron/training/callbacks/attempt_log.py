"""attempts.jsonl: start, first step, saves and end of this attempt at the run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from hybridtron.training.callbacks.base import FileWriter, Row, TrainContext
from hybridtron.training.phases import STEP, Phases
from hybridtron.training.run_folder.attempts import FINISHED, STOPPED, append_event, begin_attempt, end_attempt


class AttemptLog(FileWriter):
    """Record the attempt that this process trains; stands before MetricsFile, which drops rows of lost steps."""

    def __init__(self, folder: Path, phases: Phases, processes: int, nodes: Sequence[str]) -> None:
        self.folder, self.phases, self.processes, self.nodes = folder, phases, processes, nodes
        self.attempt = 0  # its number, from its start on
        self.start_step = self.step = 0
        self.trained = False

    def on_train_start(self, context: TrainContext) -> None:
        """Append the start."""
        self.start_step = self.step = context.state.step
        started = time.time() - sum(self.phases.seconds().values())
        self.attempt = begin_attempt(self.folder, self.step, self.processes, self.nodes, started)

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Append the first step."""
        self.step = context.state.step
        if not self.trained and self.attempt:
            self.trained = True
            append_event(
                self.folder, event="first_step", attempt=self.attempt, time=time.time(), step=context.state.step
            )

    def on_save(self, context: TrainContext, checkpoint: Path) -> None:
        """Append the save, which may complete some steps after its own."""
        saved, seconds = int(checkpoint.name.removeprefix("step_")), self.phases.seconds()
        if self.step > self.start_step:
            seconds[STEP] = seconds.get(STEP, 0.0) * (saved - self.start_step) / (self.step - self.start_step)
        if self.attempt:
            append_event(self.folder, event="save", attempt=self.attempt, time=time.time(), step=saved, seconds=seconds)

    def on_train_end(self, context: TrainContext) -> None:
        """Append the end."""
        if context.state.step >= context.config.train.steps:
            self.end(FINISHED)
        else:
            self.end(STOPPED, "stopped by a callback")

    def end(self, outcome: str, cause: str | None = None) -> None:
        """Append how the attempt ended, if it started and its end is not yet written."""
        if self.attempt:
            end_attempt(self.folder, outcome, cause, self.step, time.time(), self.phases.seconds())
