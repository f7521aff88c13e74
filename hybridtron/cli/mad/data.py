"""`hybridtron mad data`: the examples of one setting, as a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.mad.settings import changed_settings
from hybridtron.files import new_file
from hybridtron.mad.tasks.generate import generate, write_examples
from hybridtron.mad.tasks.protocol import SPLITS, TASKS

SUMMARY = "write the examples of one setting"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    verb.add_argument("changes", metavar="setting=value", nargs="*", help="what differs from the baseline")
    verb.add_argument("--out", type=Path, required=True, metavar="F.npz", help="gets the arrays inputs and targets")
    verb.add_argument("--split", default="train", metavar="|".join(SPLITS), help="which stream (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")


def run(options: argparse.Namespace) -> int:
    """Write the examples."""
    with new_file(options.out) as file:
        inputs, targets = generate(options.task, changed_settings(options.changes), options.split, options.seed)
        write_examples(file, inputs, targets)
    print(f"{options.out}: {len(inputs):,} examples of {inputs.shape[1]} tokens", file=sys.stderr)
    return 0
