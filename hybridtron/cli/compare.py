"""`hybridtron compare`: several runs beside each other."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "loss curves, costs and the settings that differ of several runs"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folders, of any state")
    verb.add_argument("--out", metavar="FOLDER", type=Path, help="write the page, its pictures and result.json there")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the tables, and write the report where a folder is named."""
    from hybridtron.api.monitoring import compare

    print_result(compare(*options.runs, out=options.out), options.json)
    if options.out and not options.json:
        print(f"page {options.out / 'report.html'}")
    return 0
