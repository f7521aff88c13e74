"""`hybridtron convert to-megatron`: a checkpoint of ours for megatron-core."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "a checkpoint as a torch_dist checkpoint of megatron-core's GPTModel or MambaModel"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("run_path", metavar="RUN_OR_STEP", type=Path, help="a run folder, or one checkpoint in it")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder to make, for --load of Megatron-LM")
    parser.add_argument(
        "--kind", choices=["gpt", "mamba"], help="GPTModel or MambaModel; by default GPTModel where it has the layers"
    )
    parser.add_argument(
        "--spec",
        choices=["transformer-engine", "local"],
        default="transformer-engine",
        help="whose modules megatron-core builds layers of (default: transformer-engine)",
    )
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and print the receipt."""
    from hybridtron.convert.megatron.to_megatron import to_megatron
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("to-megatron") as progress:
        receipt = to_megatron(options.run_path, options.out, options.kind, options.spec, progress)
    print_result(receipt, options.json)
    return 0
