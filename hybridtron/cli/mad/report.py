"""`hybridtron mad report`: tables and pictures of results."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.files import json_text
from hybridtron.mad.report.write import print_scores, read_scores, write_report

SUMMARY = "tables and pictures of results"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    verb.add_argument("--out", type=Path, metavar="DIR", help="for the report; by default report in the first DIR")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Write the report and print the scores."""
    made, warnings = read_scores(options.folders)
    out = options.out or options.folders[0] / "report"
    write_report(made, warnings, out)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json_text([score.as_json() for score in made]))
    else:
        print_scores(made)
        print(f"\n{out / 'report.html'}")
    return 0
