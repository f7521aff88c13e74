"""`hybridtron plan`: stages, memory and traffic of a layout."""

from __future__ import annotations

import argparse

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "stages, memory and traffic of a config's layout on any number of processes"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="processes in all")
    verb.add_argument("--dry-run", action="store_true", help="build every distinct stage without values and run it")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the plan of a config on --gpus processes."""
    from hybridtron.api.study import plan

    made = plan(options.config, *options.overrides, gpus=options.gpus, dry_run=options.dry_run)
    print_result(made, options.json)
    return 0
