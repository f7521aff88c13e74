"""A short training run whose outcome is a number or two: nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.process_groups.environment import Environment, read_environment
from hybridtron.distributed.process_groups.groups import process_groups
from hybridtron.errors import TrainingStopped, UserError
from hybridtron.training.callbacks.base import Callback
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import Corpus, HeldOut, open_corpus
from hybridtron.training.loop import Trainer


def train_proxy(config: RunConfig, callbacks: Sequence[Callback] = ()) -> float:
    """Train a resolved config in this one process, whatever its layout, and return the held-out loss at the end.

    Infinite where train.max_skipped_steps steps in a row had a non-finite loss or gradient. Raises UserError where the
    data does not fit or data.valid is missing.
    """
    corpus = open_corpus(config)
    if corpus.held_out is None:
        raise UserError(f"{config.name}: data.valid is missing; expected held-out tokens")
    losses = _train(config, corpus, callbacks)
    return corpus.held_out.loss(losses) if losses else math.inf


def train_tested(config: RunConfig, selecting: HeldOut, test: HeldOut) -> tuple[float, float]:
    """Train like `train_proxy`; return the losses at the end on tokens that select and on those of a test.

    Raises UserError where the data does not fit.
    """
    corpus = open_corpus(config)
    losses = _train(config, replace(corpus, held_out=HeldOut((*selecting.sources, *test.sources))), ())
    cut = len(selecting.sources)
    return (selecting.loss(losses[:cut]), test.loss(losses[cut:])) if losses else (math.inf, math.inf)


def _train(config: RunConfig, corpus: Corpus, callbacks: Sequence[Callback]) -> Sequence[float]:
    """Train in this process, and return the loss on each held-out source of the corpus; none where training stopped."""
    train = config.train.model_copy(update={"eval_every": 0})  # only the last evaluation is used
    config = config.model_copy(update={"parallel": ParallelConfig(), "train": train})
    environment = Environment(0, 1, read_environment().local_rank, None, "single")
    with process_groups(config.parallel, environment) as parallel_context:
        trainer = Trainer(config, corpus, parallel_context, callbacks=callbacks)
        try:
            trainer.run()
        except TrainingStopped:
            return ()
    return trainer.valid_losses
