"""`hybridtron convert reshard`: a checkpoint as another layout would write it."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser

SUMMARY = "write a checkpoint as another layout would, with its optimizer state"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_STEP", type=Path)
    verb.add_argument("out", metavar="OUT", type=Path, help="run folder to make")
    verb.add_argument("--tensor", metavar="N", type=int, help="tensor-parallel processes (default: 1)")
    verb.add_argument("--pipeline", metavar="N", type=int, help="pipeline stages (default: 1)")
    verb.add_argument("--files", metavar="N", type=int, help="divide into so many files of equal size instead")
    verb.add_argument("--no-optimizer", action="store_false", dest="optimizer", help="keep the parameters alone")


def run(options: argparse.Namespace) -> int:
    """Write the checkpoint anew."""
    from hybridtron.convert.checkpoints.reshard import reshard
    from hybridtron.reporting.progress import byte_progress

    names = ("tensor", "pipeline", "files", "optimizer")
    with byte_progress("reshard") as progress:
        reshard(options.run_path, options.out, **{name: getattr(options, name) for name in names}, progress=progress)
    print(options.out)
    return 0
