"""`hybridtron describe`: parameters, FLOPs and state of a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.matching import add_match_arguments, matched
from hybridtron.cli.output import print_result
from hybridtron.files import json_text, new_file

SUMMARY = "layers, parameters, FLOPs and state of the model of a config or run folder"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    add_match_arguments(verb)
    verb.add_argument("--out", type=Path, metavar="FILE", help="write the whole config, with its defaults, as YAML")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the account of a config's model, made as large as another's where that is asked for."""
    from hybridtron.api.configs import read_training_config
    from hybridtron.api.study import describe
    from hybridtron.config.load import dump

    match = matched(options)
    account = describe(options.config, *options.overrides)
    if options.out:
        with new_file(options.out) as file:
            file.write(dump(read_training_config(options.config, *options.overrides)).encode())
    if options.json:
        print(json_text(account.as_json() | ({"match": match.as_json()} if match else {})))
        return 0
    print_result(account, False)
    if match:
        print_result(match, False)
    if options.out:
        print(f"config {options.out}")
    return 0
