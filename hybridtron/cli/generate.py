"""`hybridtron generate`: continue prompts."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.errors import UserError
from hybridtron.files import json_text

SUMMARY = "continue a prompt, or several"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    verb.add_argument("run_path", metavar="RUN_OR_CHECKPOINT", type=Path)
    prompt = "what the text begins with; may be given several times"
    verb.add_argument("--prompt", action="append", default=[], metavar="TEXT", help=prompt)
    prompts_file = "a prompt per line; of a .jsonl file, a text or an object with the key prompt per line"
    verb.add_argument("--prompts", dest="prompts_file", type=Path, metavar="FILE", help=prompts_file)
    tokens = "tokens to add at most (%(default)s)"
    verb.add_argument("--tokens", dest="max_tokens", type=int, default=200, metavar="N", help=tokens)
    temperature = "0: always the likeliest token (%(default)s)"
    verb.add_argument("--temperature", type=float, default=0.8, metavar="T", help=temperature)
    top_k = "draw among the K likeliest, 0: all (%(default)s)"
    verb.add_argument("--top-k", type=int, default=0, metavar="K", help=top_k)
    top_p = "draw among the fewest likeliest that have probability P together (%(default)s: all)"
    verb.add_argument("--top-p", type=float, default=1.0, metavar="P", help=top_p)
    penalty = "above 1: tokens that have occurred are less likely (%(default)s)"
    verb.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R", help=penalty)
    stop = "end before this text; may be given several times"
    verb.add_argument("--stop", action="append", default=[], metavar="TEXT", help=stop)
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (%(default)s)")
    inside = "the prompt stands within a document; else it begins one, after the end-of-document id"
    verb.add_argument("--within-document", dest="start_document", action="store_false", help=inside)
    log_probs = "with --json: also the tokens, their log probabilities and what ended the text"
    verb.add_argument("--log-probs", action="store_true", help=log_probs)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print prompts and their continuations; as JSON one object a line."""
    from hybridtron.model.generation.sampling import Sampling
    from hybridtron.training.process.device import take_device
    from hybridtron.training.single_process import load

    if options.log_probs and not options.json:
        raise UserError("log_probs=True: expected --json beside it")
    prompts = [*options.prompt, *(_read_prompts(options.prompts_file) if options.prompts_file else [])]
    if not prompts and options.prompts_file:
        raise UserError(f"prompts_file = {options.prompts_file}: is empty; expected a prompt on each line")
    if not prompts:
        raise UserError("prompt is missing: expected --prompt TEXT or --prompts FILE")
    sampling = Sampling(options.repetition_penalty, options.temperature, options.top_k, options.top_p)
    model = load(options.run_path, device=take_device())
    completions = model.complete(
        prompts,
        options.max_tokens,
        sampling=sampling,
        stop=options.stop,
        seed=options.seed,
        start_document=options.start_document,
    )
    for number, completion in enumerate(completions, 1):
        if options.json:
            row: dict[str, Any] = asdict(completion)
            shown = row if options.log_probs else {key: row[key] for key in ("prompt", "text")}
            print(json_text(shown, indent=None), flush=True)
            continue
        if len(prompts) > 1:
            print(f"{'' if number == 1 else chr(10)}--- {number} of {len(prompts)}")
        print(completion.prompt + completion.text, flush=True)
    return 0


def _read_prompts(file: Path) -> list[str]:
    """Return the prompts of a text or .jsonl file, in which lines end at line feeds alone; empty ones may follow.

    Raises UserError where it is not one, and for an empty line before a prompt of a text file.
    """
    try:
        lines = file.read_text(encoding="utf-8").rstrip().split("\n")
    except OSError as error:
        raise UserError(f"prompts_file = {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"prompts_file = {file}: expected UTF-8 text") from None
    if lines == [""]:
        return []
    if file.suffix == ".jsonl":
        return [_prompt_of(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"prompts_file = {file}: line {number} is empty; expected a prompt on each line")
    return lines


def _prompt_of(file: Path, number: int, line: str) -> str:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    prompt = value.get("prompt") if isinstance(value, dict) else value
    if not isinstance(prompt, str):
        raise UserError(f"{file}, line {number}: expected a JSON text, or an object with a text as prompt")
    return prompt
