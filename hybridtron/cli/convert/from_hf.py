"""`hybridtron convert from-hf`: a Hugging Face folder as a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.convert.to_hf import add_check_arguments
from hybridtron.cli.output import print_result

SUMMARY = "a Hugging Face folder as a run folder, from which a run can begin"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("folder", metavar="FOLDER", type=Path, help="with config.json and safetensors files")
    verb.add_argument("out", metavar="OUT", type=Path, help="the run folder to make")
    ignored = "tensors in FOLDER that may be left over, by name or with * and ?; repeatable"
    verb.add_argument("--ignore", nargs="+", action="extend", default=[], metavar="NAME", help=ignored)
    verb.add_argument("--dtype", metavar="D", help="float32 or bfloat16; by default as they are")
    length = "data.seq_len of the run; by default max_position_embeddings"
    verb.add_argument("--seq-len", type=int, metavar="N", help=length)
    padding = "add rows of zeros to embedding and output projection, up to a multiple of this"
    verb.add_argument("--pad-vocab-to", type=int, metavar="MULTIPLE", help=padding)
    add_check_arguments(verb)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Convert, and print the receipt; return 1 where logits differ."""
    from hybridtron.convert.importing import from_hf
    from hybridtron.reporting.progress import byte_progress

    with byte_progress("from-hf") as progress:
        receipt = from_hf(
            options.folder,
            options.out,
            ignore=options.ignore,
            dtype=options.dtype,
            seq_len=options.seq_len,
            pad_vocab_to=options.pad_vocab_to,
            logits=options.logits,
            check=options.check,
            progress=progress,
        )
    print_result(receipt, options.json)
    return 1 if receipt.same_logits is False else 0
