"""`hybridtron eval`: the loss of a run on held-out text, or results of models on evaluation tasks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.errors import UserError
from hybridtron.files import json_text

SUMMARY = "loss, perplexity and bits per byte of a run on held-out text; or results on tasks of lm-eval"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    several = "a run or a checkpoint of it; with --tasks several, or folders of Hugging Face"
    verb.add_argument("run_paths", metavar="RUN_OR_CHECKPOINT", type=Path, nargs="+", help=several)
    verb.add_argument("--data", metavar="PREFIX", help="token files; by default the run's data.valid")
    sequences = "sequences, at most what the file holds; by default the run's train.eval_sequences"
    verb.add_argument("--sequences", type=int, metavar="N", help=sequences)
    tasks = "tasks of lm-eval, or task files (.yaml); results go into evals.csv of each run"
    verb.add_argument("--tasks", metavar="NAME_OR_FILE[,..]", help=tasks)
    verb.add_argument("--shots", type=int, metavar="N", help="examples before each question; by default the task's")
    verb.add_argument("--limit", type=int, metavar="N", help="questions of each task; by default all")
    verb.add_argument("--batch-size", type=int, metavar="N", default=8, help="sequences of a pass (default 8)")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Print the loss, perplexity and bits per byte; or the table of results."""
    if options.tasks is not None:
        return _run_tasks(options)
    if len(options.run_paths) > 1:
        raise UserError(f"{options.run_paths[1]}: expected one run or checkpoint; several are for tasks")
    from hybridtron.training.evaluate import evaluate_run

    result = evaluate_run(options.run_paths[0], options.data, options.sequences)
    if options.json:
        print(json_text(result))
        return 0
    print(f"{result['checkpoint']} on {result['data']}, {result['sequences']} sequences of {result['seq_len']} tokens")
    for name, source in result.get("sources", {}).items():
        print(f"{name}: {_losses_text(source)}")
    print(("together, by weight: " if "sources" in result else "") + _losses_text(result))
    return 0


def _losses_text(result: Mapping[str, Any]) -> str:
    """Return loss, perplexity and bits per byte as text."""
    bits = result["bits_per_byte"]
    bits_text = "unknown (no byte count beside the tokens)" if bits is None else f"{bits:.4f}"
    perplexity = "inf" if result["perplexity"] is None else f"{result['perplexity']:.3f}"
    return f"loss {result['loss']:.4f}  perplexity {perplexity}  bits per byte {bits_text}"


def _run_tasks(options: argparse.Namespace) -> int:
    if options.data is not None or options.sequences is not None:
        raise UserError(f"{'data' if options.data is not None else 'sequences'}: expected without tasks")
    try:
        import lm_eval  # noqa: F401

        from hybridtron.convert.hf.evaluate import evaluate_tasks
    except ModuleNotFoundError as error:
        raise UserError(f"tasks = {options.tasks}: needs the extra hf: no package {error.name}") from None
    rows = evaluate_tasks(
        options.run_paths,
        options.tasks.split(","),
        shots=options.shots,
        limit=options.limit,
        batch_size=options.batch_size,
    )
    if options.json:
        print(json_text(rows))
        return 0
    from hybridtron.reporting.table import Column, Table, decimal_column

    columns = [Column(name, [row[name] for row in rows]) for name in ("model", "task", "metric")]
    columns += [decimal_column(name, [row[name] for row in rows], 4) for name in ("value", "stderr")]
    print(Table(columns).to_terminal(), end="")
    return 0
