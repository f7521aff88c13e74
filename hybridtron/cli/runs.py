"""`hybridtron runs`: the runs under a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "state, progress and effective time of the runs under a folder"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("folder", metavar="FOLDER", nargs="?", type=Path, default=Path("checkpoints"))
    verb.add_argument("--watch", action="store_true", help="show them again every two seconds, until Ctrl-C")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from hybridtron.api.monitoring import runs

    if not options.watch:
        print_result(runs(options.folder), options.json)
        return 0
    from hybridtron.errors import UserError
    from hybridtron.monitoring.show import watch
    from hybridtron.reporting.table import terminal

    console = terminal()
    if options.json or not console.is_terminal:
        raise UserError("watch=True: expected a terminal, and no JSON")
    try:
        watch(lambda: runs(options.folder), console)
    except KeyboardInterrupt:
        return 0
    return 0
