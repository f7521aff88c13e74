"""A short training run whose outcome is a number: nothing is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.environment import Environment, read_environment
from hybridtron.distributed.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.training.callbacks.base import Callback
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.loop import Trainer
from hybridtron.training.saving import TrainingStopped


def train_proxy(config: RunConfig, callbacks: Sequence[Callback] = ()) -> float:
    """Train a resolved config in this one process, whatever its layout, and return the held-out loss at the end.

    Infinite where train.max_skipped_steps steps in a row had a non-finite loss or gradient. Raises UserError where the
    data does not fit or data.valid is missing.
    """
    train = config.train.model_copy(update={"eval_every": 0})  # only the last evaluation is used
    config = config.model_copy(update={"parallel": ParallelConfig(), "train": train})
    corpus = open_corpus(config)
    if corpus.held_out is None:
        raise UserError(f"{config.name}: data.valid is missing; expected held-out tokens")
    environment = Environment(0, 1, read_environment().local_rank, None, "single")
    with process_groups(config.parallel, environment) as parallel_context:
        trainer = Trainer(config, corpus, parallel_context, callbacks=callbacks)
        try:
            trainer.run()
        except TrainingStopped:
            return math.inf
    assert trainer.valid_loss is not None
    return trainer.valid_loss
