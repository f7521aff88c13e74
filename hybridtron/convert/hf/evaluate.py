"""Evaluate models on tasks of lm-eval (Gao et al., the Language Model Evaluation Harness)."""

from __future__ import annotations

import contextlib
import csv
import io
import logging
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hybridtron.convert.hf.configuration import HybridtronConfig
from hybridtron.convert.hf.modeling import HybridtronForCausalLM
from hybridtron.convert.hf.tasks import resolve_tasks, templates_without_code
from hybridtron.convert.hf.tokenizer import as_transformers
from hybridtron.convert.transformers_model import FROM_FOLDER_ONLY, without_kernel_warnings
from hybridtron.errors import UserError
from hybridtron.files import read_plain, replace_file
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.process.device import take_device
from hybridtron.training.run_folder.train_state import read_state
from hybridtron.training.single_process import load

if TYPE_CHECKING:
    from lm_eval.models.huggingface import HFLM

FILE_NAME = "evals.csv"
COLUMNS = ("step", "tokens", "n_params", "loss", "task", "metric", "value", "stderr", "error")
_COUNTS = ("sample_len", "sample_count")
_SHARES = ("acc", "acc_norm", "exact_match")  # metrics that are shares of right answers

Row = dict[str, Any]


def evaluate_tasks(
    models: Sequence[Path],
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
) -> list[Row]:
    """Evaluate models on tasks; return one row per model, task and metric.

    Results of runs are written into evals.csv of their folders, where they replace older ones of the same step.

    Args:
        models: run folders, checkpoints in them, and folders of Hugging Face.
        tasks: names of lm-eval's tasks, or task files (see docs/evaluate.md).
        shots: examples in front of each question; by default those of the task.
        limit: questions of each task; by default all.
        batch_size: sequences of a pass.

    Raises:
        UserError: for a folder that holds no model, an unknown task, or a task file that is none.
    """
    for name, value, least in (("shots", shots, 0), ("limit", limit, 1), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise UserError(f"{name} = {value}: expected at least {least}")
    with _quiet(), without_kernel_warnings():
        resolved, manager = resolve_tasks(tasks)
        rows: list[Row] = []
        for path in models:
            about, model = _load(path, batch_size)
            with tempfile.TemporaryDirectory() as folder:
                results = _evaluate(model, [_with_cache(task, folder) for task in resolved], manager, shots, limit)
            own = [{"model": str(path), **about, **row} for row in results]
            if "step" in about:
                _write(path, own)
            rows += own
    return rows


def _evaluate(model: HFLM, tasks: list[Any], manager: Any, shots: int | None, limit: int | None) -> list[Row]:
    """Return task, metric, value, standard error and, of shares of right answers, the error, for one model."""
    from lm_eval import simple_evaluate

    names = ", ".join(task if isinstance(task, str) else task["task"] for task in tasks)
    sandbox = contextlib.nullcontext() if all(isinstance(task, str) for task in tasks) else templates_without_code()
    try:
        with sandbox:
            found = simple_evaluate(
                model, tasks=tasks, task_manager=manager, num_fewshot=shots, limit=limit, log_samples=False
            )
    except (MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:  # of a task, its templates, its data or the way to them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"tasks: {names}: {type(error).__name__}: {reason}") from error
    rows = []
    for task, values in (found or {"results": {}})["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if metric.endswith("_stderr") or metric in _COUNTS or not isinstance(value, int | float):
                continue
            value = float(value) if math.isfinite(value) else None
            stderr = values.get(f"{metric}_stderr,{kind}")
            label = metric if kind in ("", "none") else f"{metric},{kind}"
            rows.append({
                "task": task, "metric": label, "value": value,
                "stderr": float(stderr) if isinstance(stderr, int | float) and math.isfinite(stderr) else None,
                "error": 1 - value if metric in _SHARES and value is not None else None,
            })  # fmt: skip
    return rows


def _with_cache(task: Any, folder: str) -> Any:
    """Let the data of a task file be converted in a folder that is removed."""
    return (
        task if isinstance(task, str) else {**task, "dataset_kwargs": {**task["dataset_kwargs"], "cache_dir": folder}}
    )


def _load(path: Path, batch_size: int) -> tuple[Row, HFLM]:
    """Return facts about a model, and lm-eval's view of it."""
    from lm_eval.models.huggingface import HFLM

    device = take_device()
    if (path / "config.json").is_file() and not (path / "config.yaml").is_file():
        model, tokenizer = _load_folder(path)
        ours, length, about = isinstance(model, HybridtronForCausalLM), None, {}
    else:
        loaded = load(path, device=device)
        model, tokenizer = _wrapped(loaded), as_transformers(loaded.tokenizer)  # type: ignore[arg-type]
        ours, length, about = True, loaded.config.data.seq_len, _facts(path)
    about["n_params"] = sum(parameter.numel() for parameter in model.parameters())
    options: dict[str, Any] = {"add_bos_token": False} if ours else {}  # none in training
    view = HFLM(
        pretrained=model.to(device).eval(), tokenizer=tokenizer, backend="causal", batch_size=batch_size,
        max_length=length, **options,
    )  # fmt: skip
    return about, view


def _load_folder(path: Path) -> tuple[Any, Any]:
    """Load a folder of Hugging Face, without code from it, and without the network."""
    try:
        AutoConfig.from_pretrained(path, **FROM_FOLDER_ONLY)
        model = AutoModelForCausalLM.from_pretrained(path, **FROM_FOLDER_ONLY)
        return model, AutoTokenizer.from_pretrained(path, **FROM_FOLDER_ONLY)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a whole Hugging Face folder with a tokenizer: {reason}") from None


def _wrapped(model: Any) -> HybridtronForCausalLM:
    """Return a loaded model of ours as one of transformers, with the same parameters."""
    with torch.device("meta"):
        wrapper = HybridtronForCausalLM(HybridtronConfig(model=model.config.model.model_dump(mode="json")))
    wrapper.model = model
    return wrapper


def _facts(path: Path) -> Row:
    """Return step, tokens and held-out loss, None where none was measured, of the checkpoint of a run."""
    from hybridtron.training.run_folder.folder import read_run

    config, checkpoint = read_run(path)
    state = read_state(checkpoint)
    losses = {row["step"]: row.get("valid_loss") for row in read_metrics(Path(str(config.folder)) / "metrics.jsonl")}
    return {"step": state.step, "tokens": state.tokens, "loss": losses.get(state.step)}


def _write(path: Path, rows: list[Row]) -> None:
    """Put rows into evals.csv of a run, in place of those of the same step, task and metric."""
    from hybridtron.training.run_folder.folder import read_run_config

    file = read_run_config(path)[1] / FILE_NAME
    together = {(int(row["step"]), row["task"], row["metric"]): row for row in (*_read(file), *rows)}
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(together[key] for key in sorted(together))
    replace_file(file, text.getvalue())


def _read(file: Path) -> list[Row]:
    """Return the rows of evals.csv, none where it is missing. Raises UserError where it is none of ours."""
    if not file.exists():
        return []
    rows: list[Row] = list(csv.DictReader(io.StringIO(read_plain(file).decode(errors="replace"))))
    if any(set(row) != set(COLUMNS) or not row["step"].isdecimal() for row in rows):
        raise UserError(f"{file}: not a table that eval wrote; expected columns {', '.join(COLUMNS)}")
    return rows


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what lm-eval and datasets tell about their own work to warnings while the block runs."""
    import datasets

    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, datasets.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()
