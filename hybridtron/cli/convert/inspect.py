"""`hybridtron convert inspect`: what a checkpoint or a safetensors folder holds."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "tensors, shapes, number formats and sizes of a checkpoint or a safetensors folder"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("path", metavar="PATH", type=Path, help="a run, a checkpoint, or a folder or file of safetensors")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    from hybridtron.convert.checkpoints.inspect import inspect

    print_result(inspect(options.path), options.json)
    return 0
