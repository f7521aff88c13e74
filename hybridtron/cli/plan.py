"""`hybridtron plan`: stages, memory and traffic of a layout."""

from __future__ import annotations

import argparse
import json

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.run_config import load_run_config
from hybridtron.errors import UserError


def add_parser(verbs: argparse._SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the verb and return its parser."""
    verb = verbs.add_parser("plan", help="stages, memory and traffic of a config's layout on any number of processes")
    add_config_arguments(verb)
    verb.add_argument("--gpus", type=int, required=True, metavar="N", help="processes in all")
    verb.add_argument("--dry-run", action="store_true", help="build every distinct stage without values and run it")
    add_json_argument(verb)
    return verb


def run(options: argparse.Namespace) -> int:
    """Print the plan of a config on --gpus processes."""
    from hybridtron.planner.plan import plan
    from hybridtron.planner.show import show

    if options.gpus < 1:
        raise UserError(f"gpus = {options.gpus}: expected at least 1")
    config = load_run_config(options.config, options.overrides)
    made = plan(config, options.gpus, options.dry_run)
    if options.json:
        print(json.dumps(made.as_json(), indent=2))
    else:
        show(config.name, made)
    return 0
