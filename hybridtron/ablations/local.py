"""Runs in processes of this machine: each worker trains one run after another, as `hybridtron train` does."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.ablations.events import Event, OnEvent
from hybridtron.config.load import load
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.errors import TrainingStopped, UserError, cause_of
from hybridtron.files import lock, open_to_write
from hybridtron.processes import WorkerDied, run_tasks
from hybridtron.training.callbacks.base import Callback, Row, TrainContext
from hybridtron.training.config import RunConfig
from hybridtron.training.run import train

INTERRUPTED = 130  # exit code of a worker that was asked to stop


@dataclass(frozen=True)
class LocalRun:
    """A run to train: its config file, and the file that takes its output."""

    name: str
    config_file: Path
    log: Path


def train_here(runs: Sequence[LocalRun], num_processes: int, on_event: OnEvent) -> None:
    """Train all runs, at most `num_processes` at once; what goes wrong with one of them is its event.

    An interrupt saves the runs in progress, which go on when they are started again, and is raised.
    """
    left = {run.name: run for run in runs}

    def receive(run: LocalRun, event: Event) -> None:
        if event.kind != "step":
            left.pop(run.name, None)
        on_event(run.name, event)

    while left:
        processes = min(num_processes, len(left))
        try:
            run_tasks(_train, list(left.values()), processes, receive, single_threaded=processes > 1)
        except WorkerDied as error:
            receive(error.task, Event("failed", cause=str(error)))


class _Reporter(Callback):
    """Report every logged step of a run."""

    def __init__(self, report: Callable[[Event], None]) -> None:
        self.report = report

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Report the step and its loss."""
        if logged:
            self.report(Event("step", row["step"], row["loss"]))


def _train(run: LocalRun, report: Callable[[Any], None]) -> None:
    """Train one run in this process, and report how it ended."""
    slot = _own_slot(run.log.parent)
    with _output_to(run.log), warnings.catch_warnings():
        for module in ("megatron", "torch"):  # they warn their developers of what no user can change
            warnings.filterwarnings("ignore", module=module)
        try:
            config = load(run.config_file, (), RunConfig)
            done = train(config, Environment(0, 1, slot, None, "single"), resume=True, callbacks=[_Reporter(report)])
        except (UserError, TrainingStopped) as error:
            report(Event("failed", cause=str(error).splitlines()[0]))
            return
        except Exception as error:
            traceback.print_exc()  # into the log
            report(Event("failed", cause=f"{type(error).__name__}: {cause_of(error)}"))
            return
    if not done.summary:  # a signal stopped it
        if multiprocessing.parent_process() is None:
            raise KeyboardInterrupt
        sys.exit(INTERRUPTED)
    report(Event("finished", done.summary["step"], done.summary.get("valid_loss")))


@contextlib.contextmanager
def _output_to(log: Path) -> Iterator[None]:
    """Append what the block prints to a file."""
    with (
        log.open("a", encoding="utf-8") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        yield


_slots: list[Any] = []  # the lock that this worker holds as long as it lives, and its number


def _own_slot(folder: Path) -> int:
    """Return a number that no other worker of the study has, by which it takes its GPU; 0 in the first process.

    A worker also leaves the terminal's process group: an interrupt there reaches it once, through its parent.
    """
    if multiprocessing.parent_process() is None:
        return 0
    if not _slots:
        os.setsid()
        for number in range(10_000):
            file = open_to_write(folder / f".slot{number}")
            if lock(file):
                _slots.extend((file, number))
                break
            file.close()
    return int(_slots[1])
