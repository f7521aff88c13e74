"""Launch training runs from a Python session."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from hybridtron.api.configs import Config, read_training_config
from hybridtron.errors import UserError
from hybridtron.launcher.config import Launch, LaunchConfig, read_launch
from hybridtron.training.config import RunConfig

if TYPE_CHECKING:
    from hybridtron.launcher.job import Job
    from hybridtron.launcher.schedulers.handle import Handle


def launch(config: Config, *overrides: str, launch: Launch | LaunchConfig, dry_run: bool = False) -> Handle | str:
    """Launch a training run as a job that is started again after failures; return its handle.

    Args:
        config: a YAML file, or a dict with the keys of one.
        overrides: `key=value`, such as `optimizer.lr=1e-3`.
        launch: a launch file, such as configs/launch/slurm.yaml, or a dict with the keys of one.
        dry_run: start nothing; return the batch script, or what would be started on this machine.

    Raises:
        UserError: before anything is submitted, where the config, the data, the run folder or the allocation does not
            fit.
    """
    from hybridtron.launcher import submit as submission

    job, settings = prepare(config, *overrides, launch=launch)
    return submission.dry_run(job, settings) if dry_run else submission.submit([job], settings)[0]


def prepare(config: Config, *overrides: str, launch: Launch | LaunchConfig) -> tuple[Job, LaunchConfig]:
    """Read and check a training run and its launch file, as `launch` does."""
    from hybridtron.launcher.allocation import allocate
    from hybridtron.launcher.job import Job
    from hybridtron.training.corpus import open_corpus
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.resume import find_start, require_same_tokens

    settings = read_launch(launch)
    _require_keys_of_a_run(overrides)
    resolved = read_training_config(config, *overrides)
    allocate(resolved, settings)
    folder = RunFolder(resolved.run_folder)
    find_start(folder, resolved, resume=True)
    require_same_tokens(folder, open_corpus(resolved))
    return Job(resolved.name, resolved.run_folder, resolved), settings


def _require_keys_of_a_run(overrides: Sequence[str]) -> None:
    """Raise UserError for an override of a key that belongs into the launch file."""
    for override in overrides:
        key = str(override).partition("=")[0].partition(".")[0].strip()
        if key in LaunchConfig.model_fields and key not in RunConfig.model_fields:
            raise UserError(f"{key}: is a key of a launch file; expected it there, and keys of the run as overrides")
