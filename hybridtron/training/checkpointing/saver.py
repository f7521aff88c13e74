"""Checkpoints during training: when one is due, writing it in the background, and what happens where that fails."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.errors import TrainingStopped, UserError, cause_of
from hybridtron.training.checkpointing.save_schedule import SaveSchedule
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import STATE_NAME, TrainState, state_content

if TYPE_CHECKING:
    from hybridtron.distributed.engine import Engine

logger = logging.getLogger(__name__)

WAIT_SECONDS = 1.0  # between messages of processes that wait for each other's disks


@dataclass
class _Pending:
    """A checkpoint that is being written: by every process its own file, then by the first one what is common."""

    state: TrainState
    draft: Path
    task: Future[Any]
    is_written: bool = False  # every process's file


class Saver:
    """Save an engine into a run folder. All processes call all methods, in the same order.

    A save copies the tensors, and is written by a thread while training goes on; `poll` looks whether all processes
    are done. Only the main thread communicates with other processes.

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
        from hybridtron.distributed.checkpoint import CheckpointWriter

        self.config, self.engine, self.folder = config, engine, folder
        self.print_line, self.on_saved = print_line, on_saved
        self.is_main = engine.parallel_context.is_main
        self.schedule = SaveSchedule(config, self.is_main, engine.largest)
        self.writer = CheckpointWriter(engine)
        self.pending: _Pending | None = None

    def is_due(self, step: int) -> bool:
        """Return whether the run is saved after this step, when nothing stops it there."""
        return self.schedule.is_due(step)

    def prepare(self) -> None:
        """Plan what a checkpoint holds, before there are steps to lose. Raises TrainingStopped where that fails."""
        from hybridtron.distributed.process_groups.groups import is_lost_process

        try:
            self.writer.prepare()
        except (OSError, RuntimeError, UserError) as error:  # as where a tensor has holes, or is written twice
            if isinstance(error, RuntimeError) and is_lost_process(error):
                raise
            raise TrainingStopped(f"no checkpoint of this model can be written: {cause_of(error)}") from error

    def save(self, state: TrainState, is_last: bool) -> None:
        """Begin to write a checkpoint, after the one before it; finish where it is the last one, or not asynchronous.

        Where that fails, print so and go on, or raise TrainingStopped for the last one.
        """
        self.finish()
        self.writer.prepare()
        attempt = self.engine.largest(os.getpid() if self.is_main else 0)
        draft = self.folder.partial_checkpoint(state.step, attempt)

        def begin() -> None:
            if self.is_main:
                draft.mkdir()
            self.writer.stage()

        if failure := self.engine.first_failure(begin):
            self._fail(state, draft, failure, is_last)
            return
        self.pending = _Pending(state, draft, _in_background(lambda: self.writer.write(draft)))
        if is_last or not self.config.checkpoint.asynchronous:
            self.finish(is_last)

    def poll(self) -> None:
        """Take the pending checkpoint, if there is one, a step further where all processes are ready for it."""
        if self.pending:
            self._advance(self.pending, is_last=False)

    def finish(self, is_last: bool = False) -> None:
        """Wait for the pending checkpoint, if there is one. Raises TrainingStopped where the last one failed."""
        while self.pending:
            wait([self.pending.task], timeout=WAIT_SECONDS)
            self._advance(self.pending, is_last)

    def _advance(self, pending: _Pending, is_last: bool) -> None:
        """Complete the checkpoint where all have written their files; report it where it is complete, or failed."""
        error = pending.task.exception() if pending.task.done() else None
        state = self.engine.largest(0 if pending.task.done() and not error else 1 if error else 2)
        if state == 2:  # one is busy
            return
        if state == 1:
            self.pending = None
            failure = self.engine.first_text(cause_of(error) if error else None)
            self._fail(pending.state, pending.draft, failure or "", is_last)
        elif pending.is_written:
            self.pending = None
            self.on_saved(pending.state)
        else:
            gathered = self.writer.gather(pending.task.result())
            pending.is_written = True
            pending.task = _in_background(lambda: self._complete(pending, gathered) if self.is_main else None)

    def _complete(self, pending: _Pending, gathered: list[tuple[list[int], int]]) -> None:
        """Write what is common to all processes, and give the checkpoint its name."""
        self.writer.complete(pending.draft, gathered, {STATE_NAME: state_content(pending.state)})
        section = self.config.checkpoint
        self.folder.finish_checkpoint(pending.draft, pending.state, section.keep_last, section.keep_every)

    def _fail(self, state: TrainState, draft: Path, failure: str, is_last: bool) -> None:
        """Remove what was written, and print the failure; raise it as TrainingStopped for the last checkpoint."""
        if self.is_main:
            shutil.rmtree(draft, ignore_errors=True)
        refusal = f"step {state.step}: the checkpoint was not saved: {failure}"
        if is_last:
            raise TrainingStopped(refusal)
        self.print_line(f"{refusal}; training goes on")


def _in_background(action: Callable[[], Any]) -> Future[Any]:
    """Run an action in a thread that does not keep the process alive; its outcome is the future's."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except Exception as error:
            logger.debug("the checkpoint was not written", exc_info=True)
            future.set_exception(error)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
