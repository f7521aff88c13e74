"""`hybridtron convert ema`: a run of the average of weights that training kept."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser

SUMMARY = "write the average of weights that a run with optimizer.ema kept as a run"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("checkpoint", metavar="RUN", type=Path, help="run folder or checkpoint")
    verb.add_argument("out", metavar="OUT", type=Path, help="run folder to make")


def run(options: argparse.Namespace) -> int:
    """Write the average."""
    from hybridtron.convert.checkpoints.ema import ema
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("ema") as progress:
        ema(options.checkpoint, options.out, progress=progress)
    print(options.out)
    return 0
