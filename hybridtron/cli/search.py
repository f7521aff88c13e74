"""`hybridtron search`: what its options do."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Iterator

from hybridtron.composer.nas.config import SearchConfig
from hybridtron.composer.nas.run import report_search, run_search
from hybridtron.composer.nas.worker import SearchFailed, prepare
from hybridtron.composer.report.progress_view import summary
from hybridtron.config.load import dump, load
from hybridtron.errors import UserError


def main(options: argparse.Namespace) -> int:
    """Returns the exit code: 0 done, 1 nothing has a score."""
    if options.workers < 1:
        raise UserError(f"--workers {options.workers}: expected at least 1")
    config = load(options.config, options.overrides, SearchConfig)
    if options.show:
        print(dump(config), end="")
        return 0
    if options.workers > 1 and not options.report:
        return _together(options, config)
    try:
        with _termination_as_interrupt():
            outcome, page = report_search(config) if options.report else run_search(config)
    except SearchFailed as error:
        print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    print(json.dumps(outcome.as_json(), indent=2) if options.json else summary(outcome, page))
    return 0


def _together(options: argparse.Namespace, config: SearchConfig) -> int:
    """Several workers on this machine, of which the first tells of the search."""
    from hybridtron.distributed.launch import launch

    prepare(config)  # so that bad input starts no process
    as_json = ["--json"] if options.json else []
    command = [sys.executable, "-m", "hybridtron", "search", str(options.config), *options.overrides, *as_json]
    return launch(command, options.workers)


@contextlib.contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """The end of a cluster's job is met as Ctrl-C is."""
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
