"""Speed of reading prompts and of decoding, of this project and of Hugging Face transformers, on one thread.

    make .venv/dev
    .venv/bin/python benchmarks/inference.py [--repeats 5] [--long] [--json FILE]

The models of benchmarks/train_step.py, float32. Three figures of each, ratios being medians over repeats in turn:

* prompt: a prompt of 2,048 tokens read in parallel (LanguageModel.prefill), against the parallel pass without a state;
* decode: 32 tokens after a prompt of 128 and with it, at batch 1 and 8, always the likeliest, against `generate` of
  transformers; and these tokens alone: less the time of the prompt and the first token;
* with --long: a parallel pass over 8,192 tokens, against transformers.

Processor time, in one process, so that other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from train_step import MODELS, quiet, transformers

from hybridtron.backends.torch import TorchBackend
from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.exit_code import exit_code
from hybridtron.memory import keep_freed_memory
from hybridtron.model.generation.batch_state import BatchState
from hybridtron.model.initialize import initialize
from hybridtron.model.language_model import LanguageModel

PROMPT, LONG, BEFORE, DECODED, BATCHES = 2048, 8192, 128, 32, (1, 8)


def seconds(function: Callable[[], object]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


def in_turn(repeats: int, *functions: Callable[[], object]) -> tuple[list[float], float]:
    """Return the median seconds of each function, and the median of the last one's over the first one's."""
    for function in functions:
        function()
    rounds = rounds_of(repeats, *functions)
    ratio = statistics.median(times[-1] / times[0] for times in rounds)
    return [statistics.median(column) for column in zip(*rounds, strict=True)], ratio


def rounds_of(repeats: int, *functions: Callable[[], object]) -> list[list[float]]:
    return [[seconds(function) for function in functions] for _ in range(repeats)]


def decoding(repeats: int, ours: LanguageModel, theirs: Any, tokens: Tensor) -> dict[str, float]:
    """Return speeds and ratios of decoding after prompts [b, s], with the prompts and alone."""
    functions = []
    for count in (DECODED, 0):
        functions += [decode_ours(ours, tokens, count), decode_theirs(theirs, tokens, count)]
    for function in functions:
        function()
    rounds = rounds_of(repeats, *functions)
    alone = [(own - own_prompt, other - other_prompt) for own, other, own_prompt, other_prompt in rounds]
    batch, drawn = len(tokens), len(tokens) * DECODED
    return {
        f"decode_tokens_per_s_{batch}": drawn / statistics.median(own for own, *_ in rounds),
        f"decode_ratio_{batch}": statistics.median(other / own for own, other, *_ in rounds),
        f"decode_alone_tokens_per_s_{batch}": drawn / statistics.median(own for own, _ in alone),
        f"decode_alone_ratio_{batch}": statistics.median(other / own for own, other in alone),
    }


def decode_ours(model: LanguageModel, tokens: Tensor, count: int) -> Callable[[], None]:
    """Return a function that reads the prompts and draws count + 1 tokens, of which it reads `count`."""
    batch = len(tokens)

    def run() -> None:
        state = BatchState(model, batch, room=BEFORE + DECODED)
        following = state.advance(tokens, [BEFORE] * batch).argmax(-1, keepdim=True)
        for _ in range(count):
            following = state.advance(following, [1] * batch).argmax(-1, keepdim=True)

    return run


def decode_theirs(model: Any, tokens: Tensor, count: int) -> Callable[[], None]:
    def run() -> None:
        model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count + 1, do_sample=False,
            eos_token_id=None, pad_token_id=0, use_cache=True,
        )  # fmt: skip

    return run


@torch.inference_mode()
def measure(name: str, repeats: int, long: bool) -> dict[str, float]:
    config, theirs = MODELS[name]()
    theirs.eval()
    model = LanguageModel(config, TorchBackend())
    initialize(model, config, seed=0)
    tokens = torch.randint(256, (max(BATCHES), LONG), generator=torch.Generator().manual_seed(0))
    prompt = tokens[:1, :PROMPT]
    (own, _), ratio = in_turn(
        repeats, lambda: BatchState(model, 1, room=PROMPT).advance(prompt, [PROMPT]), lambda: model.logits(prompt)
    )
    row = {"prompt_tokens_per_s": PROMPT / own, "prompt_of_pass": ratio}
    for batch in BATCHES:
        row |= decoding(repeats, model, theirs, tokens[:batch, :BEFORE])
    if long:
        whole = tokens[:1]
        (own, _), ratio = in_turn(repeats, lambda: model.logits(whole), lambda: theirs(whole, use_cache=False))
        row |= {"long_tokens_per_s": LONG / own, "long_ratio": ratio}
    return row


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", action="store_true", help="also the pass over 8,192 tokens: minutes")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    quiet()
    keep_freed_memory()
    print(f"{platform.machine()}, 1 thread, torch {torch.__version__}, transformers {transformers.__version__}\n")
    figures = {}
    for name in MODELS:
        figures[name] = measure(name, options.repeats, options.long)
        print(f"{name:12}", *(f"{key} {value:.2f}" for key, value in figures[name].items()), sep="  ", flush=True)
    if options.json:
        record = {"date": time.strftime("%Y-%m-%d"), "models": figures}
        options.json.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
