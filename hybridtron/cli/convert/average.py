"""`hybridtron convert average`: one run of the weights of several checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser

SUMMARY = "average the weights of several checkpoints of a run"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument(
        "checkpoints", metavar="CHECKPOINT", nargs="+", type=Path, help="oldest first; a run stands for all its own"
    )
    verb.add_argument("out", metavar="OUT", type=Path, help="run folder to make")
    verb.add_argument("--weights", metavar="W", nargs="+", type=float, help="one for each checkpoint (default: equal)")
    verb.add_argument("--ema", metavar="DECAY", type=float, help="an exponential moving average instead")


def run(options: argparse.Namespace) -> int:
    """Write the average."""
    from hybridtron.convert.checkpoints.average import average
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("average") as progress:
        average(options.checkpoints, options.out, weights=options.weights, ema=options.ema, progress=progress)
    print(options.out)
    return 0
