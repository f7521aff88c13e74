"""Examples of a task: a pure function of task, setting, split and seed."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import IO, Any

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.mad.tasks.compression import compression
from hybridtron.mad.tasks.fuzzy_recall import fuzzy_recall
from hybridtron.mad.tasks.memorization import memorization
from hybridtron.mad.tasks.protocol import NUM_TEST_EXAMPLES, SPLITS, TASKS, Array, Setting, complete
from hybridtron.mad.tasks.recall import in_context_recall
from hybridtron.mad.tasks.selective_copying import selective_copying

Generator = Callable[[dict[str, Any], int, bool, np.random.Generator], tuple[Array, Array]]

_GENERATORS: dict[str, Generator] = {
    "in-context-recall": in_context_recall,
    "noisy-in-context-recall": in_context_recall,
    "fuzzy-in-context-recall": fuzzy_recall,
    "selective-copying": selective_copying,
    "compression": compression,
    "memorization": memorization,
}


def generate(
    task: str, setting: Setting, split: str, seed: int, *, num_examples: int | None = None
) -> tuple[Array, Array]:
    """Generate inputs and targets, int64 arrays [examples, length]; -100 marks targets that are not scored.

    The keys that `setting` leaves out are the baseline's. A split has a random stream of its own; `train` has the
    setting's `num_train_examples` examples, `valid` and `test` 1,280, unless `num_examples` says otherwise.

    Raises:
        UserError: for an unknown task, key or split, a seed or number that is none, and for a setting that cannot be
            generated.
    """
    whole = complete(task, setting)
    if split not in SPLITS:
        raise UserError(f"split {split!r}: expected {one_of(split, SPLITS)}")
    if num_examples is None:
        num_examples = int(whole["num_train_examples"]) if split == "train" else NUM_TEST_EXAMPLES
    for name, value, least in (("seed", seed, 0), ("num_examples", num_examples, 1)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise UserError(f"{name} {value!r}: expected a whole number of at least {least}")
    stream = np.random.SeedSequence(int(seed), spawn_key=(list(TASKS).index(task), SPLITS.index(split)))
    return _GENERATORS[task](whole, num_examples, split == "train", np.random.default_rng(stream))


def write_examples(stream: IO[bytes], inputs: Array, targets: Array) -> None:
    """Write an .npz with the arrays `inputs` and `targets`."""
    np.savez_compressed(stream, inputs=inputs, targets=targets)
