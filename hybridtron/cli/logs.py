"""`hybridtron logs`: what the processes of a launched run print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser

SUMMARY = "output of a launched run, over all its restarts"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_folder", metavar="RUN", type=Path, help="a run folder")
    verb.add_argument("--rank", type=int, default=0, metavar="N", help="the process whose output is printed")
    verb.add_argument("--follow", action="store_true", help="go on printing until the run ends")


def run(options: argparse.Namespace) -> int:
    """Print the log."""
    from hybridtron.monitoring.logs import read_log

    try:
        for block in read_log(options.run_folder, options.rank, options.follow):
            sys.stdout.buffer.write(block)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:
        return 0
    return 0
