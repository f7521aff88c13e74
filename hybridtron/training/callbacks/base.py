"""The protocol by which everything but the update itself takes part in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hybridtron.distributed.process_groups.groups import ParallelContext
    from hybridtron.model.language_model import LanguageModel
    from hybridtron.training.config import RunConfig
    from hybridtron.training.corpus import Corpus
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.train_state import TrainState

Row = dict[str, Any]  # metrics of one step: step, tokens, loss, step_loss, lr, grad_norm, tokens_per_s, ...


class StopTraining(Exception):
    """Raise in a callback to end training cleanly: the current step is completed, saved, evaluated and reported.

    In several processes it is enough that one of them raises it. Raised in `on_train_start`, no step is trained.
    """


@dataclass(frozen=True)
class TrainContext:
    """State of a training run at the moment of a call. A callback reads it and changes nothing in it."""

    config: RunConfig
    state: TrainState  # steps and tokens trained so far
    chunks: Sequence[LanguageModel]  # runs of layers that this process holds, one without virtual pipeline stages
    parallel_context: ParallelContext  # `is_main` is true on the process that writes files
    corpus: Corpus
    folder: RunFolder | None  # None where nothing is written
    valid_loss: float | None  # of the latest evaluation
    fp8_statistics: Mapping[str, Any] | None  # of the step just trained, where they were collected: see docs/fp8.md
    print_line: Callable[[str], None]  # print a line of output beside the progress bar; only the main process does
    layer_statistics: Mapping[str, Mapping[str, float | None]] | None = None  # of the step, where train asks for them
    valid_losses: Sequence[float] = ()  # of the latest evaluation, of each held-out source of the corpus
    ema_valid_loss: float | None = None  # that of the average of weights, with optimizer.ema


class Callback:
    """Base class whose methods do nothing. All processes call all methods, in the order of the list of callbacks."""

    def on_train_start(self, context: TrainContext) -> None:
        """Prepare, before the first step. A resumed run starts at `context.state.step`."""

    def before_step(self, context: TrainContext) -> None:
        """Act before an update; `context.state.step` steps are done."""

    def after_step(self, context: TrainContext, row: Row, logged: bool) -> None:
        """Receive the metrics of every step, after its evaluation if one was due.

        `logged` is true for the steps that metrics.jsonl records: every train.log_every steps, the first and the last,
        evaluations and skipped updates. `loss` is the mean over the steps since the last such step, as far as their
        losses are finite, and `tokens_per_s` is measured since then; a resumed run begins anew with both. `step_loss`
        is the loss of this step alone.
        """

    def on_evaluation(self, context: TrainContext) -> None:
        """Receive `context.valid_loss`, the held-out loss (nats per token) after `context.state.step` steps."""

    def on_save(self, context: TrainContext, checkpoint: Path) -> None:
        """Act after a checkpoint is complete.

        That is some steps after its own where it was written in the background (checkpoint.asynchronous); the last
        one is waited for.
        """

    def on_train_end(self, context: TrainContext) -> None:
        """Act after the last step, saved and evaluated. Not called where a signal or an error ends the run."""

    def close(self) -> None:
        """Release files and terminals. Called last where `on_train_start` was, also after an error."""


class FileWriter(Callback):
    """Callback whose files training can do without: an OSError of its methods is printed once, and training goes on."""
