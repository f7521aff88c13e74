"""`hybridtron convert from-megatron`: a checkpoint of megatron-core as a run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "a torch_dist checkpoint of megatron-core's GPTModel or MambaModel as a run folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the checkpoint, or a --save folder of Megatron-LM")
    parser.add_argument("out", metavar="OUT", type=Path, help="the run folder to make")
    parser.add_argument(
        "--config", help="YAML with our model section; by default what Megatron-LM's arguments in common.pt say"
    )
    parser.add_argument(
        "--vocab-size", type=int, help="number of tokens; padding of the vocabulary beyond it is dropped"
    )


def run(options: argparse.Namespace) -> int:
    from hybridtron.config.compose import compose
    from hybridtron.convert.megatron.from_megatron import from_megatron
    from hybridtron.errors import UserError

    model = None
    if options.config is not None:
        model = compose(options.config, []).mapping.get("model")
        if not isinstance(model, dict):
            raise UserError(f"{options.config}: model: expected this section")
    from_megatron(options.folder, options.out, model, options.vocab_size)
    print(options.out)
    return 0
