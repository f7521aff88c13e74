"""`hybridtron eval`: the loss of a run on held-out text."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument

SUMMARY = "loss, perplexity and bits per byte of a run on held-out text"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    verb.add_argument("--data", metavar="PREFIX", help="token files; by default the run's data.valid")
    sequences = "sequences, at most what the file holds; by default the run's train.eval_sequences"
    verb.add_argument("--sequences", type=int, metavar="N", help=sequences)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the loss, perplexity and bits per byte."""
    from hybridtron.training.evaluate import evaluate_run

    result = evaluate_run(options.run_path, options.data, options.sequences)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    bits = result["bits_per_byte"]
    bits_text = "unknown (no byte count beside the tokens)" if bits is None else f"{bits:.4f}"
    perplexity = "inf" if result["perplexity"] is None else f"{result['perplexity']:.3f}"
    print(f"{result['checkpoint']} on {result['data']}, {result['sequences']} sequences of {result['seq_len']} tokens")
    print(f"loss {result['loss']:.4f}  perplexity {perplexity}  bits per byte {bits_text}")
    return 0
