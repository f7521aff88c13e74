"""Checkpoints during training: when one is due, writing it, and what happens where that fails."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder, TrainState

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

    def is_due(self, step: int) -> bool:
        """Return whether the run is saved after this step, when nothing stops it there."""
        save_every = self.config.checkpoint.save_every
        return step == self.config.train.steps or bool(save_every and step % save_every == 0)

    def save(self, state: TrainState, is_last: bool) -> None:
        """Write a checkpoint and point `latest` at it. Where that fails, print so and go on, or raise for the last one.

        Raises TrainingStopped.
        """
        from hybridtron.distributed import checkpoint as checkpoints

        folder, is_main = self.folder, self.is_main
        attempt = self.engine.largest(os.getpid() if is_main else 0)
        draft = folder.partial_checkpoint(state.step, attempt)
        keep_last = self.config.checkpoint.keep_last
        failure = (
            self.engine.first_failure(lambda: draft.mkdir() if is_main else None)
            or self.engine.first_failure(lambda: checkpoints.save(draft, self.engine))
            or self.engine.first_failure(lambda: folder.finish_checkpoint(draft, state, keep_last) if is_main else None)
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
