"""`hybridtron convert`: checkpoints to other formats and back.

Its verbs are one module each: SUMMARY, add_arguments, run. The module to_hf.py is the verb to-hf. Heavy
imports happen when a verb runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence

from hybridtron.cli.arguments import ArgumentParser, make_verb, run_verb

VERBS = tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def main(arguments: Sequence[str]) -> int:
    """Run a verb of `convert` and return its exit code: 0 done, 1 failed. Raises UserError for bad input."""
    return run_verb(build_parser().parse_args(arguments))


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs of `convert`, one for each module here."""
    parser = ArgumentParser(prog="hybridtron convert", description="Convert, inspect and compare checkpoints.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for name in VERBS:
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        make_verb(verbs.add_parser(name, help=module.SUMMARY, description=module.SUMMARY), module)
    return parser
