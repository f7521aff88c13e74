"""`hybridtron convert verify`: are two checkpoints the same model?"""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "whether two checkpoints, runs or Hugging Face folders are the same model; exits with 1 where not"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("one", metavar="A", type=Path)
    verb.add_argument("other", metavar="B", type=Path)
    verb.add_argument(
        "--logits",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="compare logits on random tokens too (default: up to 200 million parameters)",
    )
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Compare and print what differs."""
    from hybridtron.convert.checkpoints.verify import verify
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("verify") as progress:
        result = verify(options.one, options.other, logits=options.logits, progress=progress)
    print_result(result, options.json)
    return 0 if result.same else 1
