"""`hybridtron convert to-megatron`: a checkpoint of ours for megatron-core."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "a checkpoint as a torch_dist checkpoint of megatron-core's GPTModel or MambaModel"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN_OR_STEP", type=Path, help="a run folder, or one checkpoint in it")
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


def run(options: argparse.Namespace) -> int:
    from hybridtron.convert.megatron.to_megatron import to_megatron

    to_megatron(options.run, options.out, options.kind, options.spec)
    print(options.out)
    return 0
