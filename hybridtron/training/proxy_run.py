"""A short run whose only outcome is a number: nothing is written."""

from __future__ import annotations

import math

from hybridtron.data.batches import eval_batches, global_batch
from hybridtron.distributed.config import ParallelConfig
from hybridtron.distributed.environment import Environment, read_environment
from hybridtron.distributed.groups import process_groups
from hybridtron.errors import UserError
from hybridtron.training.build import build_engine
from hybridtron.training.config import RunConfig
from hybridtron.training.corpus import open_corpus
from hybridtron.training.learning_rate import learning_rate


def train_proxy(config: RunConfig) -> float:
    """Train a resolved config in this one process, whatever its layout, and return the held-out loss at the end.

    Infinite where train.max_skipped_steps steps in a row had a non-finite loss or gradient. Raises UserError where the
    data does not fit or data.valid is missing.
    """
    config = config.model_copy(update={"parallel": ParallelConfig()})
    train = config.train
    corpus = open_corpus(config)
    held_out = corpus.held_out
    if held_out is None:
        raise UserError(f"{config.name}: data.valid is missing; expected held-out tokens")
    with process_groups(
        config.parallel, Environment(0, 1, read_environment().local_rank, None, "single")
    ) as parallel_context:
        engine, _ = build_engine(config, parallel_context)
        skipped = 0
        for step in range(train.steps):
            batches = global_batch(corpus.train, step, train.global_batch_size, train.micro_batch_size, 0, 1)
            result = engine.train_step(list(batches), learning_rate(config, step + 1))
            skipped = 0 if result.applied else skipped + 1
            if skipped >= train.max_skipped_steps:
                return math.inf
        held, counted = eval_batches(held_out.tokens, held_out.sequences, train.micro_batch_size, 0, 1)
        return engine.evaluate(list(held), counted)
