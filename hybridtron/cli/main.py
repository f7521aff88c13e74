"""The command line: one module per verb. Heavy imports happen when a verb runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from functools import partial

from hybridtron import __version__
from hybridtron.cli import (
    ablate,
    compare,
    convert,
    describe,
    doctor,
    efficiency,
    faults,
    generate,
    launch,
    logs,
    plan,
    runs,
    scale,
    search,
    train,
)
from hybridtron.cli import eval as evaluate
from hybridtron.cli.arguments import ArgumentParser, make_verb, run_verb
from hybridtron.cli.exit_code import exit_code

VERBS = (
    train,
    launch,
    evaluate,
    generate,
    runs,
    compare,
    logs,
    describe,
    plan,
    efficiency,
    search,
    scale,
    ablate,
    faults,
    doctor,
)
# Verbs with verbs of their own: hybridtron.cli.NAME has their parser and `main(arguments)`, imported when they run.
NESTED_VERBS = {
    "mad": ("data|run|report", "six synthetic tasks that rank architectures in minutes"),
    "laws": ("fit|list", "fit a scaling law to finished runs"),
    "convert": ("|".join(convert.VERBS), "checkpoints to other formats and back; inspect and compare them"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted."""
    options = _parse(list(sys.argv[1:] if arguments is None else arguments))
    # Threads that spin at barriers starve each other, and everything else, on a shared machine; torch reads this once.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # These libraries warn their developers of what no user can change.
    for module in ("megatron", "torch"):
        warnings.filterwarnings("ignore", module=module)
    # megatron-core looks for gradients of what the distributed optimizer has cut out of its buffers.
    warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
    return exit_code(partial(run_verb, options))


def build_parser() -> ArgumentParser:
    """Return the parser of all verbs; each sets `run`, its function, and `parser`, its own parser."""
    parser = ArgumentParser(prog="hybridtron", description="Train and study hybrid language models.")
    parser.add_argument("--version", action="version", version=f"hybridtron {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for module in VERBS:
        make_verb(verbs.add_parser(module.__name__.rpartition(".")[2], help=module.SUMMARY), module)
    for name, (nested, summary) in NESTED_VERBS.items():
        verb = verbs.add_parser(name, help=summary)
        verb.add_argument("verb", metavar=nested, nargs="?", help=f"`hybridtron {name} VERB --help` tells more")
        verb.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
        verb.set_defaults(run=partial(_run_nested, f"hybridtron.cli.{name}"), parser=verb)
    return parser


def _run_nested(module: str, options: argparse.Namespace) -> int:
    """Run a verb of a verb, such as `mad run`."""
    return int(importlib.import_module(module).main([*filter(None, [options.verb]), *options.arguments]))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments. Overrides may stand before or after options."""
    parser = build_parser()
    for name, (nested, _) in NESTED_VERBS.items():
        if arguments and arguments[0] in nested.split("|"):
            parser.error(f"argument VERB: invalid choice: {arguments[0]!r}: expected `{name} {arguments[0]}`")
    options: argparse.Namespace
    if arguments[:1] == ["search"] and arguments[1:2] and arguments[1] in search.VERBS:
        options, rest = search.build_parser(arguments[1]).parse_known_args(arguments[2:])
    else:
        options, rest = parser.parse_known_args(arguments)
    unknown = [word for word in rest if word.startswith("-") or "=" not in word or not hasattr(options, "overrides")]
    if unknown:
        options.parser.refuse(unknown)
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options
