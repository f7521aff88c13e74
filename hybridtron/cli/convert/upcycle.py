"""`hybridtron convert upcycle`: mixtures of experts of a dense model's layers."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser

SUMMARY = "make mixtures of experts of a dense model's swiglu layers"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_STEP", type=Path)
    verb.add_argument("out", metavar="OUT", type=Path, help="run folder to make")
    verb.add_argument(
        "--experts", metavar="N", type=int, required=True, dest="num_experts", help="copies of each layer"
    )
    verb.add_argument("--top-k", metavar="K", type=int, default=2, help="experts of each token (default: 2)")
    verb.add_argument("--blocks", metavar="NAME", nargs="+", help="blocks that change (default: all of type swiglu)")


def run(options: argparse.Namespace) -> int:
    """Write the new run."""
    from hybridtron.convert.checkpoints.upcycle import upcycle
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("upcycle") as progress:
        upcycle(
            options.run_path, options.out, options.num_experts, top_k=options.top_k, blocks=options.blocks,
            progress=progress,
        )  # fmt: skip
    print(options.out)
    return 0
