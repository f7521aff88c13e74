"""Train from a Python session."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridtron.api.configs import Config, read_training_config

if TYPE_CHECKING:
    from hybridtron.training.callbacks.base import Callback
    from hybridtron.training.run import Run


def train(
    config: Config,
    *overrides: str,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    profile: bool = False,
    profile_steps: str | None = None,
) -> Run:
    """Train a config, as `hybridtron train` does; return the run, whose `metrics` are plain rows.

    Args:
        config: a YAML file, or a dict with the keys of one.
        overrides: `key=value`, such as `optimizer.lr=1e-3`.
        callbacks: called at every step, evaluation, save and at the end, after those that write the run's files.
        resume: continue from the latest checkpoint of the run folder, if there is one.
        profile: write a trace of some steps, and a table of where their time goes, into the run folder.
        profile_steps: the steps to profile, `FIRST-LAST` or one; by default three, after nine that warm up.

    Raises:
        UserError: before anything is written, where the config, the data or the run folder does not fit.
        TrainingStopped: where too many steps in a row had a loss or gradient that is not finite.
    """
    from hybridtron.distributed.process_groups.environment import read_environment
    from hybridtron.errors import UserError
    from hybridtron.training.callbacks.base import Callback
    from hybridtron.training.run import train

    if isinstance(callbacks, Callback) or not isinstance(callbacks, Sequence):
        raise UserError(f"callbacks = {callbacks!r}: expected a list of instances of Callback")
    resolved = read_training_config(config, *overrides)
    with warnings.catch_warnings():
        for module in ("megatron", "torch"):  # they warn their developers of what no user can change
            warnings.filterwarnings("ignore", module=module)
        return train(resolved, read_environment(), resume, callbacks, profile=profile, profile_steps=profile_steps)
