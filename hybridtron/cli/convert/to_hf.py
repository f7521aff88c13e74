"""`hybridtron convert to-hf`: a run or checkpoint as a Hugging Face folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result

SUMMARY = "a run or checkpoint as a Hugging Face folder"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    verb.add_argument("out", metavar="OUT", type=Path, help="the folder to make")
    native = "such as llama or hybridtron; by default the first that can express the model"
    verb.add_argument("--as", dest="architecture", metavar="ARCHITECTURE", help=native)
    dtype = "float32, bfloat16 or float16; by default as they are"
    verb.add_argument("--dtype", metavar="D", help=dtype)
    rows = "rows of embedding and output projection; by default as many as RUN has, with its padding"
    verb.add_argument("--vocab-size", type=int, metavar="N", help=rows)
    add_check_arguments(verb)
    add_json_argument(verb)


def add_check_arguments(verb: ArgumentParser) -> None:
    """Add --logits and --no-check."""
    compared = "compare logits with transformers' model: auto (small models), always or never (%(default)s)"
    verb.add_argument("--logits", default="auto", metavar="WHEN", help=compared)
    unchecked = "do not read back what was written, and hash no files"
    verb.add_argument("--no-check", dest="check", action="store_false", help=unchecked)


def run(options: argparse.Namespace) -> int:
    """Convert, and print the receipt; return 1 where logits differ."""
    from hybridtron.convert.exporting import to_hf
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("to-hf") as progress:
        receipt = to_hf(
            options.run_path,
            options.out,
            architecture=options.architecture,
            dtype=options.dtype,
            vocab_size=options.vocab_size,
            logits=options.logits,
            check=options.check,
            progress=progress,
        )
    print_result(receipt, options.json)
    return 1 if receipt.same_logits is False else 0
