"""Options that make a config's model as large as another's."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.cli.output import is_reporting_process
from hybridtron.errors import UserError

if TYPE_CHECKING:
    from hybridtron.accounting.equal_size import Measure
    from hybridtron.api.matching import Match

MEASURES: tuple[Measure, ...] = ("parameters", "non_embedding", "flops", "state")


def add_match_arguments(verb: argparse.ArgumentParser) -> None:
    """Add --match-parameters and its siblings, of which one may be given, and --adjust, --tolerance, --multiple-of."""
    one = verb.add_mutually_exclusive_group()
    for of in MEASURES:
        words = {
            "non_embedding": "parameters without embeddings",
            "flops": "forward FLOPs per token",
            "state": "elements of state",
        }.get(of, of)
        one.add_argument(
            f"--match-{of.replace('_', '-')}", metavar=("CONFIG", "key=value"), dest=f"match_{of}", nargs="+",
            help=f"set a width so that the {words} are those of this config or run folder, with its overrides",
        )  # fmt: skip
    verb.add_argument(
        "--adjust", metavar="KEY", help="the width: by default that of the largest feed-forward block, or state size"
    )
    verb.add_argument("--tolerance", type=float, metavar="X", help="largest relative difference (0.001)")
    verb.add_argument("--multiple-of", type=int, metavar="N", help="the width is a multiple of this (1)")


def matched(options: argparse.Namespace) -> Match | None:
    """Solve for the width and append its override to those of the options; return None where nothing is matched."""
    chosen = [(of, other) for of in MEASURES if (other := getattr(options, f"match_{of}")) is not None]
    keys = ("adjust", "tolerance", "multiple_of")
    given = {key: value for key in keys if (value := getattr(options, key)) is not None}
    if not chosen:
        for key, value in given.items():
            raise UserError(f"{key} = {value}: is for --match-parameters and the like; expected one of them beside it")
        return None
    from hybridtron.api.matching import match_size

    of, (other, *changes) = chosen[0]
    if not Path(other).exists():
        raise UserError(f"match_{of} = {other}: no such config file or run folder")
    match = match_size(options.config, Path(other), *options.overrides, of=of, other_overrides=changes, **given)
    options.overrides = [*options.overrides, match.override]
    return match


def print_match(options: argparse.Namespace) -> None:
    """Solve for the width, where one is to be matched, and print it in the reporting process."""
    if (match := matched(options)) and is_reporting_process():
        print(match.line, file=sys.stderr)
