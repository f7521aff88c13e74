"""Train or continue a run in its folder."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.config.nearest import one_of
from hybridtron.distributed.process_groups.device_queues import order_messages
from hybridtron.distributed.process_groups.environment import Environment
from hybridtron.distributed.process_groups.groups import gather, process_groups
from hybridtron.errors import TrainingStopped, UserError, cause_of
from hybridtron.training.callbacks.attempt_log import AttemptLog
from hybridtron.training.callbacks.base import Callback, Row
from hybridtron.training.callbacks.closing_report import ClosingReport
from hybridtron.training.callbacks.fp8 import FP8File, FP8Plot
from hybridtron.training.callbacks.layer_statistics import LayerStatisticsFile, LayerStatisticsPlot
from hybridtron.training.callbacks.metrics import MetricsFile, read_metrics
from hybridtron.training.callbacks.plot import LossPlot
from hybridtron.training.callbacks.profiler import Profiler
from hybridtron.training.callbacks.progress import ProgressBar
from hybridtron.training.callbacks.tensorboard import TensorBoard
from hybridtron.training.callbacks.wandb import WeightsAndBiases, require_wandb
from hybridtron.training.checkpointing.restore import restore
from hybridtron.training.config import RunConfig
from hybridtron.training.loop import Trainer
from hybridtron.training.phases import Phases
from hybridtron.training.process.heartbeat import Heartbeat, is_supervised
from hybridtron.training.process.signals import StopRequest, stop_requests
from hybridtron.training.profiling.steps import profiled_steps
from hybridtron.training.run_folder.attempts import FAILED, STOPPED
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import find_start
from hybridtron.training.run_folder.summary import print_finished_run
from hybridtron.training.starting import Prepared, begin, prepare
from hybridtron.training.validation.resolve import data_parallel_size


@dataclass(frozen=True)
class Run:
    """A run after training. `summary` is that of summary.json; empty where a signal stopped the run."""

    folder: Path
    summary: dict[str, Any]

    @property
    def metrics(self) -> list[Row]:
        """Read the rows of metrics.jsonl."""
        return read_metrics(RunFolder(self.folder).metrics_file)


def train(
    config: RunConfig,
    environment: Environment,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    profile: bool = False,
    profile_steps: str | None = None,
) -> Run:
    """Train or continue a resolved config as one of the environment's processes.

    Each process calls its own `callbacks`, after those that write the run's files. Where no step is left to train, the
    run's folder is not changed. The first process profiles some steps where `profile` is set, those of `profile_steps`
    (FIRST-LAST) where that is given. Raises UserError before anything is written where the data, the layout, the run
    folder or the profiled steps do not fit; TrainingStopped where too many steps in a row were skipped.
    """
    for callback in callbacks:
        _check_callback(callback)
    phases = Phases()
    data_parallel_size(config, environment.world_size)  # raises where the layout does not fit
    order_messages(config.parallel)  # before anything below starts CUDA
    require_wandb(config)
    folder = RunFolder(config.run_folder)
    start = find_start(folder, config, resume)
    is_main = environment.rank == 0
    if print_finished_run(folder, start, config, lambda text: print(text, file=sys.stderr) if is_main else None):
        return Run(folder.path, folder.read_summary(start.state.step))
    profiles = (profile or profile_steps) and start.state.step < config.train.steps
    profiled = profiled_steps(profile_steps, start.state.step, config.train.steps) if profiles else None
    prepared = prepare(folder, config, start, environment.world_size)
    progress, report = ProgressBar(visible=is_main), ClosingReport(folder)
    with stop_requests(is_main) as stop, process_groups(config.parallel, environment) as parallel_context:
        log = AttemptLog(folder.path, phases, environment.world_size, gather(socket.gethostname()))

        def find(damaged: Mapping[str, str]) -> Prepared:
            return prepare(folder, config, find_start(folder, config, resume, damaged), environment.world_size)

        def build(run: Prepared) -> Trainer:
            writers = [log, *_writers(config, folder)] if is_main and run.trains else []
            own = [Heartbeat()] if is_supervised() else []
            profilers = [Profiler(folder.path, profiled)] if profiled and is_main else []
            every = [*profilers, *own, *writers, progress, report, *callbacks]
            trainer = Trainer(run.config, run.corpus, parallel_context, folder, every, progress.print_line, phases)
            for profiler in profilers:
                profiler.trainer = trainer
            return trainer

        trainer, start = restore(folder, prepared, find, build)
        try:
            begin(trainer, folder, start)
            with _outcome_recorded(log, stop):
                trainer.run(lambda: stop.number)
        except (TrainingStopped, OSError) as error:
            kept = _kept(folder) if is_main else ""
            cause = cause_of(error) if isinstance(error, OSError) else str(error)
            raise TrainingStopped(f"{cause}; {kept}") from None
        finally:
            folder.unlock()
    return Run(folder.path, report.summary)


def _kept(folder: RunFolder) -> str:
    """Return which checkpoint a run can be continued from, in words."""
    try:
        latest = folder.latest_checkpoint()
    except UserError as error:
        return str(error)
    return f"{latest} is intact" if latest else "there is no checkpoint yet"


@contextlib.contextmanager
def _outcome_recorded(log: AttemptLog, stop: StopRequest) -> Iterator[None]:
    """Record how the attempt ended that the block trains, where the callback has not: by a signal or an error."""
    outcome, cause = STOPPED, None
    try:
        yield
        if stop.number:
            cause = f"{signal.Signals(stop.number).name} received"
    except BaseException as error:
        outcome, cause = FAILED, cause_of(error)
        raise
    finally:
        with contextlib.suppress(OSError, UserError):
            log.end(outcome, cause)


def _check_callback(callback: object) -> None:
    """Raise UserError for what is no callback, or has a method that looks like one of the protocol and is not."""
    if not isinstance(callback, Callback):
        raise UserError(f"callbacks: {callback!r}: expected an instance of Callback")
    protocol = [name for name in vars(Callback) if not name.startswith("_")]
    for name in dir(callback):
        if name.startswith(("on_", "before_", "after_")) and name not in protocol:
            method = f"{type(callback).__name__}.{name}"
            raise UserError(f"callbacks: {method} is never called: expected {one_of(name, protocol)}")


def _writers(config: RunConfig, folder: RunFolder) -> list[Callback]:
    """Return the callbacks of the main process that write files."""
    writers: list[Callback] = [
        MetricsFile(folder.metrics_file),
        TensorBoard(folder.path / "tensorboard"),
        LossPlot(folder.metrics_file, folder.plot_file),
    ]
    if config.precision.format == "fp8":
        rows = folder.path / "fp8.jsonl"
        writers += [FP8File(rows), FP8Plot(rows, rows.with_suffix(".png"))]
    if config.train.layer_statistics_every:
        rows = folder.path / "layer_statistics.jsonl"
        writers += [LayerStatisticsFile(rows), LayerStatisticsPlot(rows, rows.with_suffix(".png"))]
    if config.train.wandb is not None:
        writers.append(WeightsAndBiases(config.train.wandb, folder))
    return writers
