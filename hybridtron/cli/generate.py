"""`hybridtron generate`: continue a prompt."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument

SUMMARY = "continue a prompt"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    verb.add_argument("--prompt", required=True, metavar="TEXT", help="what the text begins with")
    tokens = "tokens to add at most (%(default)s)"
    verb.add_argument("--tokens", dest="max_tokens", type=int, default=200, metavar="N", help=tokens)
    temperature = "0: always the likeliest token (%(default)s)"
    verb.add_argument("--temperature", type=float, default=0.8, metavar="T", help=temperature)
    top_k = "draw among the K likeliest, 0: all (%(default)s)"
    verb.add_argument("--top-k", type=int, default=0, metavar="K", help=top_k)
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (%(default)s)")
    inside = "the prompt stands within a document; else it begins one, after the end-of-document id"
    verb.add_argument("--within-document", dest="start_document", action="store_false", help=inside)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the prompt and its continuation."""
    from hybridtron.training.device import take_device
    from hybridtron.training.single_process import load

    model = load(options.run_path, device=take_device())
    (text,) = model.generate(
        options.prompt,
        options.max_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        seed=options.seed,
        start_document=options.start_document,
    )
    print(json.dumps({"prompt": options.prompt, "text": text}) if options.json else options.prompt + text)
    return 0
