"""Run folders of this project as a table: one row per run, at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.errors import UserError
from hybridtron.files import is_number
from hybridtron.laws.data.runs import Runs, text_columns
from hybridtron.training.callbacks.metrics import read_metrics


def read_run_folders(folder: Path, context: int | None, where: Sequence[tuple[str, Any]] = ()) -> Runs:
    """Read a run folder, or a folder whose subfolders are run folders.

    Parameters, FLOPs per token and state size come from the account of the run's config, the loss from the run's
    held-out loss. `context` is the sequence length at which the state is counted (attention's state grows with it); by
    default the length that the run was trained at. Runs without a loss or tokens (diverged, or just begun) are left out
    with a warning; `where` may leave out any by its name before it is read. Raises UserError for a folder without runs.
    """
    runs = [folder] if (folder / "config.yaml").is_file() else sorted(p.parent for p in folder.glob("*/config.yaml"))
    if not runs:
        raise UserError(f"{folder}: expected a run folder (config.yaml), a folder of run folders, a .csv or a .parquet")
    for column, value in where:
        if column.removesuffix("!") == "run":
            kept = Runs.of(run=[run.name for run in runs]).matches(column, value)
            runs = [run for run, keep in zip(runs, kept, strict=True) if keep] or runs
    rows, warnings, left_out = [], [], []
    for run in runs:
        try:
            end, odd = _end(run)
        except UserError as error:
            left_out.append(f"left out: {error}")
        else:
            rows.append(_row(run, context, end))
            warnings += odd
    at = "at each run's seq_len" if context is None else f"at a context of {context} tokens"
    return Runs(
        text_columns({name: [str(row[name]) for row in rows] for name in (rows or [{}])[0]}),
        np.arange(1, len(rows) + 1),
        str(folder),
        place="run",
        notes=(f"state of run folders is counted {at}", "flops of run folders are 3 forward passes per token"),
        warnings=(*left_out, *warnings),
    )


def _row(folder: Path, context: int | None, end: dict[str, Any]) -> dict[str, Any]:
    from hybridtron.accounting.describe import describe
    from hybridtron.training.run_folder.folder import read_config

    config = read_config(folder)
    if not config.model.vocab_size:
        raise UserError(f"{folder / 'config.yaml'}: model.vocab_size = 0; expected the resolved config of a run")
    state = describe(config.model, context or config.data.seq_len)
    account = describe(config.model, config.data.seq_len).as_json()
    parameters, blocks = account["parameters"], [config.model.blocks[name].type for name in config.model.layer_names]
    return {
        "run": folder.name,
        "arch": "+".join(dict.fromkeys(blocks)),
        "pattern": account["pattern"],
        "n_params": parameters["total"],
        "n_params_non_embedding": parameters["non_embedding"],
        "n_params_active": parameters["active"],
        "tokens": end["tokens"],
        "flops": account["flops_per_token"]["training"] * end["tokens"],
        "loss": end["loss"],
        "total_state": state.state_size,
        "state_context": context or config.data.seq_len,
        "width": config.model.hidden_size,
        "depth": len(blocks),
        "learning_rate": config.optimizer.lr,
        "batch_tokens": config.train.global_batch_size * config.data.seq_len,
    }


def _end(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Read tokens and loss at the end of the run, or of its last row, and what is odd about them.

    Raises UserError where there is no loss or no token.
    """
    summary, warnings = folder / "summary.json", []
    if summary.is_file():
        try:
            end = dict(json.loads(summary.read_text()))
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{summary}: not a JSON object ({error})") from None
    else:
        rows = read_metrics(folder / "metrics.jsonl")
        if not rows:
            raise UserError(f"{folder / 'metrics.jsonl'}: no rows; expected a run that has logged at least one step")
        end = rows[-1]
        warnings.append(f"unfinished: {folder} has no summary.json; its last row, at step {end.get('step')}, is used")
    held_out = end.get("valid_loss") is not None
    loss, tokens = end.get("valid_loss") if held_out else end.get("loss"), end.get("tokens")
    if not held_out:
        warnings.append(f"training loss: {folder} has no held-out loss; is its training loss what you want to compare?")
    if not (is_number(loss) and is_number(tokens) and loss > 0 and tokens > 0):
        raise UserError(f"{folder}: loss {loss} after {tokens} tokens; expected a number and some tokens")
    return {"tokens": tokens, "loss": loss}, warnings
