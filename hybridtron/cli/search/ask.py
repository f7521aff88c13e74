"""`hybridtron search ask`: patterns to evaluate elsewhere."""

from __future__ import annotations

import argparse
import sys

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument

SUMMARY = "take patterns of a search to evaluate elsewhere"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb, "evaluations=20")
    verb.add_argument("--count", type=int, default=1, metavar="N", help="patterns, each with one seed (%(default)s)")
    hold = "for so long nobody else gets them (%(default)s)"
    verb.add_argument("--hold", type=float, default=24.0, metavar="HOURS", dest="hold_hours", help=hold)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the patterns, a line each; none where nothing is left or others have the rest."""
    from hybridtron.composer.nas.driving import open_search
    from hybridtron.files import json_text

    with open_search(options.config, *options.overrides) as search:
        found = search.ask(options.count, options.hold_hours)
    if not found:
        print("nothing to evaluate: the search is complete, or others have the rest", file=sys.stderr)
    if options.json:
        print(json_text([asked.as_json() for asked in found]))
    for asked in () if options.json else found:
        print(f"{asked.id}  seed {asked.seed}  {asked.pattern}" + (f"  {asked.letters}" if asked.letters else ""))
    return 0
