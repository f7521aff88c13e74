"""`hybridtron doctor`: what is installed."""

from __future__ import annotations

import argparse

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.files import json_text

SUMMARY = "what is installed and which path each operation will take"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the report on this installation."""
    from hybridtron.accounting.doctor import examine, show

    report = examine()
    if options.json:
        print(json_text(report))
    else:
        show(report)
    return 0
