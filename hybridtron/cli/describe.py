"""`hybridtron describe`: parameters, FLOPs and state of a model."""

from __future__ import annotations

import argparse
import json

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument
from hybridtron.cli.run_config import load_run_config


def add_parser(verbs: argparse._SubParsersAction[ArgumentParser]) -> ArgumentParser:
    """Add the verb and return its parser."""
    verb = verbs.add_parser("describe", help="layers, parameters, FLOPs and state of a config's model")
    add_config_arguments(verb)
    add_json_argument(verb)
    return verb


def run(options: argparse.Namespace) -> int:
    """Print the account of a config's model."""
    from hybridtron.accounting.describe import describe
    from hybridtron.accounting.picture import draw

    config = load_run_config(options.config, options.overrides)
    account = describe(config.model, config.data.seq_len)
    if options.json:
        print(json.dumps(account.as_json(), indent=2))
    else:
        draw(config.name, config.model, account)
    return 0
