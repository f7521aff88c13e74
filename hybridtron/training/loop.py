"""The training loop: a batch, an update, what is reported, what is saved, when to stop."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hybridtron.accounting.describe import describe
from hybridtron.accounting.peak import peak_flops_per_s
from hybridtron.data.batches import eval_batches, global_batch
from hybridtron.distributed.environment import Environment
from hybridtron.distributed.groups import ParallelContext, process_groups
from hybridtron.errors import UserError
from hybridtron.training.build import build_engine, stages_in_words
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus, open_corpus
from hybridtron.training.learning_rate import learning_rate
from hybridtron.training.metrics import MetricsWriter, plot_loss, read_metrics
from hybridtron.training.progress import ProgressView
from hybridtron.training.report import repeat_summary
from hybridtron.training.run_folder.environment_info import environment_info
from hybridtron.training.run_folder.folder import RunFolder, TrainState, naming_an_older_one, replace_text
from hybridtron.training.run_folder.resume import Start, as_recorded, find_start, record_changes, require_same_tokens
from hybridtron.training.signals import StopRequest, stop_requests
from hybridtron.training.validation.memory import require_memory
from hybridtron.training.validation.resolve import data_parallel_size

if TYPE_CHECKING:
    from hybridtron.distributed.engine import StepResult


class TrainingStopped(Exception):
    """Too many steps in a row had a non-finite loss or gradient; the last checkpoint is as it was."""


def train(config: RunConfig, environment: Environment, resume: bool) -> None:
    """Run or continue a resolved config as one of the environment's processes.

    Where no step is left, the run's folder stays as it is. Raises UserError before anything is written when the data,
    the layout or the run folder does not fit; TrainingStopped when too many steps in a row were skipped.
    """
    data_parallel_size(config, environment.world_size)  # refuses what does not come out even
    folder = RunFolder(config.run_folder)
    start = find_start(folder, config, resume)
    speaks = environment.rank == 0
    if repeat_summary(folder, start, config, lambda text: print(text, file=sys.stderr) if speaks else None):
        return
    if start.state.step == config.train.steps:  # only the closing report is missing
        config = as_recorded(folder, config)
    require_memory(config, environment.world_size)
    corpus = open_corpus(config)
    start = replace(start, changes=(*start.changes, *require_same_tokens(folder, corpus)))
    with stop_requests(speaks) as stop, process_groups(config.parallel, environment) as parallel_context:
        run = _Run(config, parallel_context, folder, corpus, stop)
        try:
            run.start(start)
            run.advance_to_the_end()
        finally:
            run.close()


class _Run:
    """One process's part in a run. Only the first process writes; checkpoints are written by all."""

    def __init__(
        self, config: RunConfig, parallel_context: ParallelContext, folder: RunFolder, corpus: Corpus, stop: StopRequest
    ) -> None:
        self.config, self.parallel_context, self.folder, self.corpus, self.stop = (
            config,
            parallel_context,
            folder,
            corpus,
            stop,
        )
        self.state = TrainState()
        self.engine, self.chunks = build_engine(config, parallel_context)
        self.flops_per_token = 3 * describe(config.model, config.data.seq_len).flops_forward / config.data.seq_len
        self.peak = peak_flops_per_s(parallel_context.device, config.precision.format)
        self.last_evaluation = (-1, float("nan"))  # step and loss
        self.writer: MetricsWriter | None = None
        self.view: ProgressView | None = None

    def start(self, start: Start) -> None:
        from hybridtron.distributed import checkpoint as checkpoints

        self.state = start.state
        if start.checkpoint:
            latest = self.folder.path / "latest"
            with naming_an_older_one(start.checkpoint, f": to continue from it, write {{name}} into {latest}"):
                checkpoints.load(start.checkpoint, self.engine)
        self._claim_folder()
        left = self.state.step < self.config.train.steps
        if self.parallel_context.is_main and left:
            record_changes(self.folder, start.changes, self.state.step + 1)
            self.folder.create(self.config, environment_info(self.config, self.parallel_context, self.corpus))
            self.writer = MetricsWriter(self.folder.path, self.state.step)
        self.view = ProgressView(
            self.config.name, self.state.step, self.config.train.steps, self.parallel_context.is_main
        )
        if self.config.parallel.num_stages > 1:
            self.view.say(stages_in_words(self.config))
        if start.checkpoint:
            self.view.say(f"resumed from {start.checkpoint} at step {self.state.step}")
        for change in start.changes:
            self.view.say(f"{change} from step {self.state.step + 1}" if left else f"{change}: not used")

    def _claim_folder(self) -> None:
        """All have looked at the folder before the first process changes it, and all end where that may not."""
        refusal = f"run folder {self.folder.path}: another process is writing to it; expected one run at a time"
        free = True
        if self.parallel_context.is_main:
            try:
                free = self.folder.lock()
            except UserError as error:
                free, refusal = False, str(error)
        if not self.engine.agree(free):
            raise UserError(refusal)

    def advance_to_the_end(self) -> None:
        steps, save_every = self.config.train.steps, self.config.checkpoint.save_every
        clock = _Clock()
        saved = self.state.step if self.state.step else -1
        stopping = False
        while self.state.step < steps and not stopping:
            result, lr = self._update()
            step = self.state.step
            stopping = bool(self.engine.largest(self.stop.number)) and step < steps
            clock.trained(self.config.tokens_per_step)
            valid = self._evaluate() if self._evaluation_due() else None
            self._report(result, lr, valid, clock)
            if self.state.skipped_in_a_row >= self.config.train.max_skipped_steps:
                self._give_up()
            if stopping or step == steps or (save_every and step % save_every == 0):
                self._save()
                saved = step
            clock.resume()
        if saved != self.state.step:
            self._save()
        if stopping:
            self._say(f"stopped by a signal after step {self.state.step}; saved, continue with --resume")
        else:
            self._finish()

    def _update(self) -> tuple[StepResult, float]:
        config, parallel_context = self.config, self.parallel_context
        batches = global_batch(
            self.corpus.train,
            self.state.step,
            config.train.global_batch_size,
            config.train.micro_batch_size,
            parallel_context.data_rank,
            parallel_context.data_size,
        )
        lr = learning_rate(config, self.state.step + 1)
        result = self.engine.train_step(list(batches), lr)
        self.state = replace(
            self.state,
            step=self.state.step + 1,
            tokens=self.state.tokens + config.tokens_per_step,
            skipped=self.state.skipped + (not result.applied),
            skipped_in_a_row=0 if result.applied else self.state.skipped_in_a_row + 1,
        )
        return result, lr

    def _evaluation_due(self) -> bool:
        step, train = self.state.step, self.config.train
        return self.corpus.held_out is not None and (
            step == train.steps or bool(train.eval_every and step % train.eval_every == 0)
        )

    def _evaluate(self) -> float:
        held_out = self.corpus.held_out
        assert held_out is not None
        parallel = self.config.parallel
        batches, counted = eval_batches(
            held_out.tokens,
            held_out.sequences,
            self.config.train.micro_batch_size,
            self.parallel_context.data_rank,
            self.parallel_context.data_size,
            multiple=parallel.pipeline if parallel.virtual_pipeline > 1 else 1,  # as the interleaved schedule wants
        )
        self.last_evaluation = (self.state.step, self.engine.evaluate(list(batches), counted))
        return self.last_evaluation[1]

    def _report(self, result: StepResult, lr: float, valid: float | None, clock: _Clock) -> None:
        step, train = self.state.step, self.config.train
        rate = clock.tokens_per_s()
        flops = rate * self.flops_per_token
        row: dict[str, Any] = {
            "step": step,
            "tokens": self.state.tokens,
            "loss": result.loss,
            "lr": lr,
            "grad_norm": result.grad_norm,
            "tokens_per_s": rate,
            "flops_per_s": flops,
            "mfu": flops / (self.peak * self.parallel_context.world_size) if self.peak else None,
            "time": time.time(),
            "skipped": self.state.skipped,
        }
        if result.expert_load:
            row["expert_load"] = result.expert_load
        if valid is not None:
            row["valid_loss"] = valid
            row["valid_bits_per_byte"] = self._bits(valid)
        logged = step % train.log_every == 0 or step in (1, train.steps) or valid is not None or not result.applied
        if self.writer and logged:
            self.writer.write(row)
        if self.view:
            self.view.step(row, (train.steps - step) * self.config.tokens_per_step / rate, logged)
        if not result.applied:
            self._say(f"step {step}: loss {result.loss} or a gradient is not finite; the step is skipped")
        if valid is not None:
            self._say(f"step {step}: held-out loss {valid:.4f}{self._as_bits(valid)}")
        if logged:
            clock.logged()

    def _save(self) -> None:
        from hybridtron.distributed import checkpoint as checkpoints

        attempt = self.engine.largest(os.getpid() if self.parallel_context.is_main else 0)
        partial = self.folder.partial_checkpoint(self.state.step, attempt)
        if self.parallel_context.is_main:
            partial.mkdir()
        self.engine.agree(True)  # the folder is there
        checkpoints.save(partial, self.engine)
        if self.parallel_context.is_main:
            self.folder.finish_checkpoint(partial, self.state, self.config.checkpoint.keep_last)
            plot_loss(read_metrics(self.folder.metrics_file), self.folder.plot_file, self.config.name)
        self.engine.agree(True)  # nobody goes on, or ends, before it has its name

    def _finish(self) -> None:
        from hybridtron.training.finish import closing_report

        if self.corpus.held_out and self.last_evaluation[0] != self.state.step:  # resumed where it had ended
            self._evaluate()
        valid = self.last_evaluation[1] if self.corpus.held_out else None
        summary = closing_report(
            self.config, self.corpus, self.chunks, self.parallel_context, self.state, valid, self._say
        )
        if self.parallel_context.is_main:
            replace_text(self.folder.summary_file, json.dumps(summary, indent=2) + "\n")

    def _give_up(self) -> None:
        latest = self.folder.latest_checkpoint() if self.parallel_context.is_main else None
        kept = f"{latest} is intact" if latest else "there is no checkpoint yet"
        raise TrainingStopped(
            f"step {self.state.step}: {self.state.skipped_in_a_row} steps in a row had a non-finite loss or gradient "
            f"(train.max_skipped_steps); {kept}"
        )

    def _bits(self, loss: float) -> float | None:
        return self.corpus.held_out.bits_per_byte(loss) if self.corpus.held_out else None

    def _as_bits(self, loss: float) -> str:
        bits = self._bits(loss)
        return "" if bits is None else f" = {bits:.3f} bits per byte"

    def _say(self, text: str) -> None:
        if self.view:
            self.view.say(text)

    def close(self) -> None:
        if self.view:
            self.view.close()
        if self.writer:
            self.writer.close()


class _Clock:
    """Training speed since the last logged row, without the time of evaluations and saves."""

    def __init__(self) -> None:
        self.seconds, self.tokens, self.since = 0.0, 0, time.perf_counter()

    def trained(self, tokens: int) -> None:
        self.seconds += time.perf_counter() - self.since
        self.tokens += tokens

    def tokens_per_s(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    def logged(self) -> None:
        self.seconds, self.tokens = 0.0, 0

    def resume(self) -> None:
        self.since = time.perf_counter()
