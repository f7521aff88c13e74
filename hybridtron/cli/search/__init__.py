"""`hybridtron search`: search architectures.

Its verbs, such as `search transfer`, are one module each: SUMMARY, add_arguments, run. Any other word after `search` is
the config of a search. Heavy imports happen when a verb runs.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.cli.arguments import (
    ArgumentParser,
    add_config_arguments,
    add_json_argument,
    add_print_argument,
    make_verb,
)
from hybridtron.cli.jobs import add_launch_argument, run_jobs
from hybridtron.cli.output import print_result, terminating_signal_as_interrupt
from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError

if TYPE_CHECKING:
    from hybridtron.composer.nas.config import SearchConfig
    from hybridtron.composer.report.outcome import Outcome

VERBS = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))
SUMMARY = "search architectures, or go on with a search; several may share one folder"


def build_parser(name: str) -> ArgumentParser:
    """Return the parser of a verb of `search`; it sets `run`, the verb's function, and `parser`, itself."""
    module = importlib.import_module(f"{__name__}.{name}")
    verb = ArgumentParser(prog=f"hybridtron search {name}", description=module.SUMMARY)
    make_verb(verb, module)
    return verb


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.description = f"{SUMMARY}. `hybridtron search {'|'.join(VERBS)} --help` tells of other uses."
    add_config_arguments(verb)
    verb.add_argument("--workers", type=int, default=1, metavar="N", help="processes to start here (%(default)s)")
    add_launch_argument(verb, "the workers")
    verb.add_argument("--report", action="store_true", help="evaluate nothing: the page of what is recorded so far")
    add_print_argument(verb)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Run or report a search. Returns 1 where nothing has a score."""
    from hybridtron.composer.nas.config import SearchConfig
    from hybridtron.composer.nas.run import report_search
    from hybridtron.composer.nas.worker import SearchFailed
    from hybridtron.config.load import dump, load

    if options.workers < 1:
        raise UserError(f"workers = {options.workers}: expected at least 1")
    _refuse_misspelt_verb(options.config)
    config = load(options.config, options.overrides, SearchConfig)
    if options.show:
        print(dump(config), end="")
        return 0
    if options.workers > 1 and not options.report and options.launch is None:
        return _launch_workers(options, config)
    as_jobs = options.launch is not None and not options.report
    if as_jobs and not _run_workers_as_jobs(options, config):
        return 1
    try:
        with terminating_signal_as_interrupt():
            outcome, page = report_search(config) if options.report or as_jobs else _run_search(config)
    except SearchFailed as error:
        print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    print_result(outcome, options.json)
    if not options.json:
        print(f"page {page}")
    return 0


def _refuse_misspelt_verb(config: Path) -> None:
    """Raise UserError for a CONFIG that is no file and reads like a verb, such as `tel`."""
    verb = nearest(str(config), VERBS)
    if verb and not config.exists():
        raise UserError(f"{config}: no such file; expected a config, or {one_of(str(config), VERBS)}")


def _run_search(config: SearchConfig) -> tuple[Outcome, Path]:
    """Run the search with its progress in the terminal, which the first process of a job alone shows."""
    from hybridtron.composer.nas.run import run_search
    from hybridtron.composer.report.summary import SearchProgress
    from hybridtron.distributed.process_groups.environment import read_environment

    view = SearchProgress(config.name, quiet=read_environment().rank > 0)
    try:
        return run_search(config, view.watch)
    except KeyboardInterrupt:
        view.print("stopped; the same command goes on with what is recorded")
        raise
    finally:
        view.close()


def _run_workers_as_jobs(options: argparse.Namespace, config: SearchConfig) -> bool:
    """Run the workers as jobs, in a folder beside that of the search; return whether all finished."""
    from hybridtron.composer.nas.worker import prepare
    from hybridtron.launcher.job import Job

    prepare(config)  # so that bad input submits no job
    folder = config.search_folder.with_name(f"{config.search_folder.name}-jobs")
    arguments = ("search", str(options.config.absolute()), *options.overrides)
    names = [f"worker-{number}" for number in range(options.workers)]
    return run_jobs([Job(name, folder / name, arguments=arguments) for name in names], options.launch, folder)


def _launch_workers(options: argparse.Namespace, config: SearchConfig) -> int:
    """Start several workers on this machine, of which the first reports. Returns the exit code."""
    from hybridtron.composer.nas.worker import prepare
    from hybridtron.distributed.process_groups.launch import launch, python_command

    prepare(config)  # so that bad input starts no process
    as_json = ["--json"] if options.json else []
    command = python_command("search", str(options.config), *options.overrides, *as_json)
    return launch(command, options.workers)
