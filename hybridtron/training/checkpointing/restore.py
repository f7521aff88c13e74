"""Load what a run starts from: the newest checkpoint that all processes can read, or the weights of another run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.distributed.process_groups.groups import call_everywhere, gather
from hybridtron.errors import DamagedCheckpoint, UserError
from hybridtron.initial_weights import brief
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.resume import Start

if TYPE_CHECKING:
    from hybridtron.training.loop import Trainer
    from hybridtron.training.starting import Prepared


def restore(
    folder: RunFolder,
    prepared: Prepared,
    find: Callable[[Mapping[str, str]], Prepared],
    build: Callable[[Prepared], Trainer],
) -> tuple[Trainer, Start]:
    """Build the trainer and load the newest checkpoint that is whole in all processes.

    `find` prepares the run from the newest checkpoint that is not among the damaged ones, given as name -> error.
    Raises UserError where none is whole, or where the processes see different checkpoints; OSError, in all processes,
    where the system of one of them cannot read the newest.
    """
    trainer = None
    while True:
        prepared = _agreed(folder, prepared, find)
        start = prepared.start
        if trainer is None or trainer.config != prepared.config:
            trainer = build(prepared)
        trainer.state = start.state
        if start.checkpoint is None:
            if start.weights:
                return trainer, replace(start, initial=_load_weights(start, trainer))
            return trainer, start
        try:
            _load(start.checkpoint, trainer)
            return trainer, start
        except DamagedCheckpoint as error:
            failure = str(error)
        prepared = call_everywhere(partial(find, {**start.damaged, start.checkpoint.name: failure}))


def _agreed(folder: RunFolder, mine: Prepared, find: Callable[[Mapping[str, str]], Prepared]) -> Prepared:
    """Return the start that all processes take, without the checkpoints that any of them found damaged."""
    damaged = [dict(each) for each in gather(mine.start.damaged)]
    union = {name: error for each in reversed(damaged) for name, error in each.items()}
    if any(each.keys() != union.keys() for each in damaged):
        mine = call_everywhere(partial(find, union))
    names = gather(mine.start.checkpoint.name if mine.start.checkpoint else "none")
    if len(set(names)) > 1:
        raise UserError(
            f"run folder {folder.path}: the processes see different checkpoints ({', '.join(sorted(set(names)))}); "
            "expected a folder that all of them share"
        )
    return mine


def _load(checkpoint: Path, trainer: Trainer) -> None:
    from hybridtron.distributed import checkpoint as checkpoints

    checkpoints.load(checkpoint, trainer.engine, trainer.config.checkpoint.verify)


def _load_weights(start: Start, trainer: Trainer) -> dict[str, Any]:
    """Read the weights that a new run begins with, and return what environment.json says of them.

    Raises UserError where they are those of another model.
    """
    from hybridtron.distributed import checkpoint as checkpoints

    assert start.weights is not None
    verify = trainer.config.checkpoint.verify
    try:
        matched = checkpoints.load_weights(start.weights, trainer.engine, verify, start.rules)
    except UserError as error:
        raise type(error)(f"train.init_from: {error}") from None
    lists = {"init_random": matched.random, "init_left_over": matched.left_over}
    initial: dict[str, Any] = {"init_from": os.path.abspath(start.weights)}
    initial |= {key: brief(names) for key, names in lists.items() if names}
    return initial | ({"init_new_rows": matched.new_rows} if matched.new_rows else {})
