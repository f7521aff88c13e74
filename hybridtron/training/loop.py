"""The training loop: update, evaluate, call the callbacks, save, stop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from hybridtron.data.loaders.batches import eval_batches
from hybridtron.data.loaders.loader import make_loader
from hybridtron.data.loaders.sampler import BatchSampler
from hybridtron.distributed.process_groups.groups import ParallelContext
from hybridtron.errors import TrainingStopped, cause_of
from hybridtron.model.compiling import compile_layers
from hybridtron.training.build import build_engine
from hybridtron.training.callbacks.base import Callback, FileWriter, Row, StopTraining, TrainContext
from hybridtron.training.checkpointing.saver import Saver
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus, HeldOutSource
from hybridtron.training.lr_schedule import learning_rate
from hybridtron.training.phases import END, EVALUATION, SAVE, STEP, Phases
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.train_state import TrainState
from hybridtron.training.throughput import Throughput

if TYPE_CHECKING:
    from hybridtron.distributed.engine import StepResult

STOPPED_BY_CALLBACK = 1000  # above every signal number


class Trainer:
    """One process's part in training. Checkpoints are written into `folder` by all processes; None: by none."""

    def __init__(
        self,
        config: RunConfig,
        corpus: Corpus,
        parallel_context: ParallelContext,
        folder: RunFolder | None = None,
        callbacks: Sequence[Callback] = (),
        print_line: Callable[[str], None] = lambda text: None,
        phases: Phases | None = None,
    ) -> None:
        self.phases = phases or Phases()
        self.config, self.corpus, self.parallel_context = config, corpus, parallel_context
        self.folder, self.callbacks, self.print_line = folder, callbacks, print_line
        self.engine, self.chunks = build_engine(config, parallel_context)
        if config.train.compile:
            compile_layers(self.engine.chunks.chunks, parallel_context.device)
        train = config.train
        sampler = BatchSampler(
            train.batch_sizes, train.micro_batch_size, parallel_context.data_rank, parallel_context.data_size
        )
        self.load_batches = make_loader(
            config.data.loader, corpus.train, sampler, parallel_context.device, config.data.isolates
        )
        self.saver = Saver(config, self.engine, folder, print_line, self._saved) if folder else None
        self.state = TrainState()
        self.valid_loss: float | None = None
        self.valid_losses: tuple[float, ...] = ()  # of each held-out source
        self.ema_valid_loss: float | None = None  # of the average of weights
        self.evaluated_at = -1  # step
        self.fp8_statistics: dict[str, Any] | None = None
        self.layer_statistics: dict[str, dict[str, float | None]] | None = None
        self.stop_raised = False
        self.failed_writers: list[Callback] = []
        self.losses: list[float] = []  # of the steps since the last logged one

    def run(self, signal_number: Callable[[], int] = lambda: 0) -> bool:
        """Train to the last step; return False where a signal ended the run before it.

        `signal_number` returns the number of the signal that asks this process to stop, or 0. Raises TrainingStopped
        after train.max_skipped_steps skipped steps in a row.
        """
        steps = self.config.train.steps
        with contextlib.ExitStack() as at_the_end:
            for callback in self.callbacks:
                at_the_end.callback(self._write, callback, callback.close)
                self._call(lambda each, context: each.on_train_start(context), [callback])
            at_the_end.push(self._finish_saving)
            stop = self._stop_reason()
            if self.saver and self.state.step < steps:
                self.saver.prepare()
            throughput = Throughput(self.config, self.parallel_context)
            while self.state.step < steps and not stop:
                self._step(throughput)
                self.phases.enter(SAVE)
                if self.saver:
                    self.saver.poll()
                stop = self._stop_reason(signal_number())
                if self.state.skipped_in_a_row >= self.config.train.max_skipped_steps:
                    if self.saver:
                        self.saver.finish()
                    raise TrainingStopped(self._skipped())
                step = self.state.step
                if self.saver and (stop or self.saver.is_due(step)):
                    self.saver.save(self.state, is_last=bool(stop) or step == steps)
                    stop = stop or self._stop_reason()
            if self.saver:
                self.saver.finish(is_last=True)
            self.phases.enter(END)
            if 0 < stop < STOPPED_BY_CALLBACK and self.state.step < steps:
                step = self.state.step
                self.print_line(f"stopped by a signal after step {step}; saved, continue with resume=True")
                return False
            if self.corpus.held_out and self.evaluated_at != self.state.step:
                self._evaluate()
            self._call(lambda callback, context: callback.on_train_end(context))
        return True

    def _finish_saving(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Complete the pending checkpoint where an error ends a run of one process; others may not be waited for."""
        if error and self.saver and self.parallel_context.world_size == 1:
            self.saver.finish()

    def _stop_reason(self, signal_number: int = 0) -> int:
        """Return what ends training in any process: a signal's number, STOPPED_BY_CALLBACK, or 0 to go on."""
        return self.engine.largest(STOPPED_BY_CALLBACK if self.stop_raised else signal_number)

    def _call(
        self, method: Callable[[Callback, TrainContext], None], callbacks: Sequence[Callback] | None = None
    ) -> None:
        """Call a method of all callbacks, or of some, also where one of them stops the training."""
        callbacks = self.callbacks if callbacks is None else callbacks
        if not callbacks:
            return
        context = TrainContext(
            self.config,
            self.state,
            self.chunks,
            self.parallel_context,
            self.corpus,
            self.folder,
            self.valid_loss,
            self.fp8_statistics,
            self.print_line,
            self.layer_statistics,
            self.valid_losses,
            self.ema_valid_loss,
        )
        for callback in callbacks:
            try:
                self._write(callback, partial(method, callback, context))
            except StopTraining as reason:
                self.stop_raised = True
                self.print_line(f"stopped by {type(callback).__name__} at step {self.state.step}: {reason}")

    def _write(self, callback: Callback, call: Callable[[], None]) -> None:
        """Make a call of a callback, whose failure to write a file that training can do without is said once."""
        try:
            call()
        except OSError as error:
            if not isinstance(callback, FileWriter):
                raise
            if callback not in self.failed_writers:
                self.failed_writers.append(callback)
                name = type(callback).__name__
                self.print_line(f"step {self.state.step}: {name}: not written: {cause_of(error)}; training goes on")

    def _step(self, throughput: Throughput) -> None:
        """Update, evaluate where that is due, and pass the metrics to the callbacks."""
        self.phases.enter(STEP)
        self._call(lambda callback, context: callback.before_step(context))
        before = self.state.tokens
        throughput.start()
        result, lr = self._update()
        self.losses.append(result.loss)
        throughput.stop(self.state.tokens - before)
        step, train = self.state.step, self.config.train
        due = step == train.steps or (train.eval_every and step % train.eval_every == 0)
        evaluated = bool(due) and self.corpus.held_out is not None
        if evaluated:
            self._evaluate()
        row = self._row(result, lr, throughput, evaluated)
        logged = step % train.log_every == 0 or step in (1, train.steps) or evaluated or not result.applied
        self._call(lambda callback, context: callback.after_step(context, row, logged))
        if logged:
            throughput.reset()
            self.losses.clear()

    def _update(self) -> tuple[StepResult, float]:
        """Train on the next batch; return the result and the learning rate."""
        batches = self.load_batches(self.state.step)
        lr = learning_rate(self.config, self.state.step + 1)
        self._collect_fp8(self.state.step + 1)
        every = self.config.train.layer_statistics_every
        is_collected = self.folder is not None and every and (self.state.step + 1) % every == 0
        statistics = self.engine.collect_layer_statistics() if is_collected else None
        result = self.engine.train_step(batches, lr)
        self.layer_statistics = statistics.take() if statistics else None
        if (fp8 := self.engine.fp8) and fp8.state.collects:
            self.fp8_statistics = fp8.take_statistics() or None  # Transformer Engine has none
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            tokens=self.state.tokens + self.config.tokens(self.state.step, self.state.step + 1),
            skipped=self.state.skipped + (not result.applied),
            skipped_in_a_row=0 if result.applied else self.state.skipped_in_a_row + 1,
        )
        return result, lr

    def _collect_fp8(self, step: int) -> None:
        """Let FP8 linears collect statistics in the steps that a run folder records of them."""
        self.fp8_statistics = None
        if fp8 := self.engine.fp8:
            train = self.config.train
            fp8.state.collects = self.folder is not None and (step % train.log_every == 0 or step in (1, train.steps))

    def _evaluate(self) -> None:
        """Compute the held-out loss of each source and of the whole."""
        before = self.phases.phase
        self.phases.enter(EVALUATION)
        assert self.corpus.held_out is not None
        self.valid_losses = tuple(self._loss_on(source) for source in self.corpus.held_out.sources)
        self.valid_loss, self.evaluated_at = self.corpus.held_out.loss(self.valid_losses), self.state.step
        if self.engine.average:
            with self.engine.average.in_place_of_weights():
                losses = tuple(self._loss_on(source) for source in self.corpus.held_out.sources)
            self.ema_valid_loss = self.corpus.held_out.loss(losses)
        self._call(lambda callback, context: callback.on_evaluation(context))
        self.phases.enter(before)

    def _loss_on(self, source: HeldOutSource) -> float:
        parallel = self.config.parallel
        batches, counted = eval_batches(
            source.tokens,
            source.sequences,
            self.config.train.micro_batch_size,
            self.parallel_context.data_rank,
            self.parallel_context.data_size,
            multiple=parallel.pipeline if parallel.virtual_pipeline > 1 else 1,  # as the interleaved schedule requires
            isolate=self.config.data.isolates,
        )
        return self.engine.evaluate(list(batches), counted)

    def _row(self, result: StepResult, lr: float, throughput: Throughput, evaluated: bool) -> Row:
        """Return the metrics of the step that was just trained."""
        finite = [loss for loss in self.losses if math.isfinite(loss)]
        row: dict[str, Any] = {
            "step": self.state.step,
            "tokens": self.state.tokens,
            "loss": fmean(finite) if finite else result.loss,
            "step_loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            **throughput.row(),
            "time": time.time(),
            "skipped": self.state.skipped,
        }
        if result.mtp_loss is not None:
            row["mtp_loss"] = result.mtp_loss
        if result.expert_load:
            row["expert_load"] = result.expert_load
        for name, used in self.corpus.usage(self.state.tokens // self.config.data.seq_len).items():
            row[f"epochs/{name}"] = used["epochs"]
        if evaluated and self.corpus.held_out:
            row |= self.corpus.held_out.row(self.valid_losses)
            if self.ema_valid_loss is not None:
                row["ema_valid_loss"] = self.ema_valid_loss
        return row

    def _saved(self, state: TrainState) -> None:
        """Call the callbacks with a complete checkpoint."""
        assert self.folder is not None
        checkpoint = self.folder.checkpoint(state.step)
        self._call(lambda callback, context: callback.on_save(context, checkpoint))

    def _skipped(self) -> str:
        """Return the message about too many skipped steps."""
        state = self.state
        return (
            f"step {state.step}: {state.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
            "(train.max_skipped_steps)"
        )
