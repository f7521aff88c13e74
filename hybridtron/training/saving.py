"""Checkpoints during training: when one is due, writing it, and what happens where that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder, TrainState
from hybridtron.training.save_schedule import SaveSchedule

if TYPE_CHECKING:
    from hybridtron.distributed.engine import Engine


class TrainingStopped(Exception):
    """Too many steps in a row had a non-finite loss or gradient, or the last checkpoint could not be written."""


class Saver:
    """Save an engine into a run folder. All processes call all methods, in the same order.

    `print_line` prints a line of output; `on_saved` is called with the state of each checkpoint that is complete.
    """

    def __init__(
        self,
        config: RunConfig,
        engine: Engine,
        folder: RunFolder,
        print_line: Callable[[str], None],
        on_saved: Callable[[TrainState], None],
    ) -> None:
        self.config, self.engine, self.folder = config, engine, folder
        self.print_line, self.on_saved = print_line, on_saved
        self.is_main = engine.parallel_context.is_main
        self.schedule = SaveSchedule(config, self.is_main, engine.largest)

    def is_due(self, step: int) -> bool:
        """Return whether the run is saved after this step, when nothing stops it there."""
        return self.schedule.is_due(step)

    def save(self, state: TrainState, is_last: bool) -> None:
        """Write a checkpoint and point `latest` at it. Where that fails, print so and go on, or raise for the last one.

        Raises TrainingStopped.
        """
        from hybridtron.distributed import checkpoint as checkpoints

        folder, is_main = self.folder, self.is_main
        attempt = self.engine.largest(os.getpid() if is_main else 0)
        draft = folder.partial_checkpoint(state.step, attempt)
        section = self.config.checkpoint

        def finish() -> None:
            folder.finish_checkpoint(draft, state, section.keep_last, section.keep_every)

        failure = (
            self.engine.first_failure(lambda: draft.mkdir() if is_main else None)
            or self.engine.first_failure(lambda: checkpoints.save(draft, self.engine))
            or self.engine.first_failure(lambda: finish() if is_main else None)
        )  # no process goes on, or ends, before the checkpoint is complete
        if failure is None:
            self.on_saved(state)
            return
        if is_main:
            shutil.rmtree(draft, ignore_errors=True)
        refusal = f"step {state.step}: the checkpoint was not saved: {failure}"
        if is_last:
            raise TrainingStopped(refusal)
        self.print_line(f"{refusal}; training goes on")
