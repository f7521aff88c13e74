"""`hybridtron convert from-megatron`: a checkpoint of megatron-core as a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "a torch_dist checkpoint of megatron-core's GPTModel or MambaModel as a run folder"


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the checkpoint, or a --save folder of Megatron-LM")
    parser.add_argument("out", metavar="OUT", type=Path, help="the run folder to make")
    parser.add_argument(
        "--config", help="YAML with our model section; by default what Megatron-LM's arguments in common.pt say"
    )
    parser.add_argument(
        "--vocab-size", type=int, help="number of tokens; padding of the vocabulary beyond it is dropped"
    )
    add_json_argument(parser)


def run(options: argparse.Namespace) -> int:
    """Convert, and print the receipt."""
    from hybridtron.convert.megatron.from_megatron import from_megatron
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("from-megatron") as progress:
        receipt = from_megatron(options.folder, options.out, options.config, options.vocab_size, progress)
    print_result(receipt, options.json)
    return 0
