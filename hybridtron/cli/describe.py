"""`hybridtron describe`: parameters, FLOPs and state of a model."""

from __future__ import annotations

import argparse

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "layers, parameters, FLOPs and state of the model of a config or run folder"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the account of a config's model."""
    from hybridtron.api.study import describe

    print_result(describe(options.config, *options.overrides), options.json)
    return 0
