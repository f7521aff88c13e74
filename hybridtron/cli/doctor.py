"""`hybridtron doctor`: what is installed."""

from __future__ import annotations

import argparse
import json

from hybridtron.cli.arguments import ArgumentParser, add_json_argument


def add_parser(verbs: argparse._SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the verb and return its parser."""
    verb = verbs.add_parser("doctor", help="what is installed and which path each operation will take")
    add_json_argument(verb)
    return verb


def run(options: argparse.Namespace) -> int:
    """Print the report on this installation."""
    from hybridtron.accounting.doctor import examine, show

    report = examine()
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0
