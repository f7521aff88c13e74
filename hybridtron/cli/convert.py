"""`hybridtron convert`: checkpoints to other formats and back; see `hybridtron.cli.converting` for its verbs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from hybridtron.cli import converting
from hybridtron.cli.arguments import ArgumentParser, naming_options


def main(arguments: Sequence[str]) -> int:
    """Run a verb of `convert` and return its exit code: 0 done, 1 failed. Raises UserError for bad input."""
    options = build_parser().parse_args(arguments)
    with naming_options(options.parser, options):
        return int(options.run(options))


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs of `convert`, one for each module of `hybridtron.cli.converting`."""
    parser = ArgumentParser(prog="hybridtron convert", description="Convert, inspect and compare checkpoints.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name in converting.VERBS:
        module = importlib.import_module(f"hybridtron.cli.converting.{name.replace('-', '_')}")
        verb = verbs.add_parser(name, help=module.SUMMARY, description=module.SUMMARY)
        module.add_arguments(verb)
        verb.set_defaults(run=module.run, parser=verb)
    return parser
