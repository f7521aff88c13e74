"""`hybridtron train`: train a model, or continue a run."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_print_argument
from hybridtron.cli.matching import add_match_arguments, print_match
from hybridtron.cli.output import LAUNCHER, is_reporting_process
from hybridtron.errors import TrainingStopped, UserError, cause_of
from hybridtron.imports import collector_paused, freeze_imported

if TYPE_CHECKING:
    from hybridtron.training.config import RunConfig


SUMMARY = "train a model, or continue a run"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    add_match_arguments(verb)
    verb.add_argument("--nproc", type=int, default=None, metavar="N", help="processes to start on this machine")
    verb.add_argument("--resume", action="store_true", help="continue from the latest checkpoint, if there is one")
    verb.add_argument(
        "--profile", action="store_true", help="write a trace and a table of some steps into the run folder"
    )
    verb.add_argument(
        "--profile-steps", metavar="FIRST-LAST", help="steps that --profile takes (default: three, after nine)"
    )
    add_print_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Train, or show the config. Returns 1 where training stopped early."""
    from hybridtron.api.configs import read_training_config
    from hybridtron.distributed.process_groups.environment import read_environment

    print_match(options)
    config = read_training_config(options.config, *options.overrides)
    if options.show:
        return _show(config, options.nproc)

    if options.nproc is not None and options.nproc != 1:
        return _train_in_processes(options, config)
    environment = read_environment()
    size_name = "nproc" if environment.world_size == 1 else f"processes of {environment.launcher}"
    if _is_finished(options, config, environment.world_size, size_name, report=environment.rank == 0):
        return 0
    with collector_paused():
        from hybridtron.distributed.process_groups.groups import is_lost_process
        from hybridtron.training.process import heartbeat
        from hybridtron.training.run import train
    freeze_imported()
    try:
        train(config, environment, options.resume, profile=options.profile, profile_steps=options.profile_steps)
    except TrainingStopped as error:
        heartbeat.send(cause=str(error))
        if is_reporting_process():
            print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        heartbeat.send(cause=cause_of(error), lost_peer=True)
        if LAUNCHER not in os.environ:  # which says what happened to that one
            print(f"hybridtron: stopped: another process of the run is gone: {cause_of(error)}", file=sys.stderr)
        return 1
    return 0


def _show(config: RunConfig, num_processes: int | None) -> int:
    """Print the config as YAML. Raises UserError where its layout does not fit the processes."""
    from hybridtron.config.load import dump
    from hybridtron.training.validation.resolve import data_parallel_size

    if num_processes:
        data_parallel_size(config, num_processes, "nproc")
    print(dump(config), end="")
    return 0


def _is_finished(
    options: argparse.Namespace, config: RunConfig, world_size: int, size_name: str, report: bool
) -> bool:  # fmt: skip
    """Return whether the run has nothing left to do, and print its summary if so. Needs no torch.

    Raises UserError where --profile-steps names steps that are not trained.
    """
    from hybridtron.training.profiling.steps import profiled_steps
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.resume import find_start
    from hybridtron.training.run_folder.summary import print_finished_run
    from hybridtron.training.validation.resolve import data_parallel_size

    data_parallel_size(config, world_size, size_name)
    folder = RunFolder(config.run_folder)
    start = find_start(folder, config, options.resume)
    if print_finished_run(folder, start, config, lambda text: print(text, file=sys.stderr) if report else None):
        return True
    if options.profile_steps and start.state.step < config.train.steps:
        profiled_steps(options.profile_steps, start.state.step, config.train.steps)
    return False


def _train_in_processes(options: argparse.Namespace, config: RunConfig) -> int:
    """Start --nproc processes. Checks first whatever needs no tensor, so that bad input starts no process."""
    import torch

    from hybridtron.distributed.process_groups.environment import read_environment
    from hybridtron.distributed.process_groups.launch import launch, python_command
    from hybridtron.training.corpus import open_corpus
    from hybridtron.training.run_folder.folder import RunFolder
    from hybridtron.training.run_folder.resume import require_same_tokens
    from hybridtron.training.validation.memory import require_memory

    if options.nproc < 1:
        raise UserError(f"nproc = {options.nproc}: expected at least 1")
    found = read_environment()
    if found.world_size > 1:
        raise UserError(f"nproc = {options.nproc}: {found.launcher} already started {found.world_size} processes")
    if _is_finished(options, config, options.nproc, "nproc", report=True):
        return 0
    require_devices(options.nproc, torch.cuda.device_count() if torch.cuda.is_available() else None)
    require_memory(config, options.nproc)
    require_same_tokens(RunFolder(config.run_folder), open_corpus(config))
    command = python_command("train", str(options.config), *options.overrides)
    return launch(command + _flags(options), options.nproc)


def _flags(options: argparse.Namespace) -> list[str]:
    """Return the flags that each process is given."""
    steps = ["--profile-steps", options.profile_steps] if options.profile_steps else []
    return ["--resume"] * options.resume + ["--profile"] * options.profile + steps


def require_devices(nproc: int, gpus: int | None) -> None:
    """Raise UserError where processes would share a GPU; `gpus` is None on a machine without one."""
    if gpus is not None and nproc > gpus:
        raise UserError(f"nproc = {nproc}: expected at most {gpus}, one process for each GPU of this machine")
