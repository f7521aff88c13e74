"""Evaluation tasks of lm-eval: those that it has, by name, and task files of the user, which never run code."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridtron.config import yaml_text
from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError

SUFFIXES = (".yaml", ".yml")
FORMATS = ("json", "csv", "parquet", "text")  # of data on disk, which reading does not execute
KEYS = frozenset(
    """task task_alias dataset_path dataset_name dataset_kwargs training_split validation_split test_split
    fewshot_split doc_to_text doc_to_target doc_to_choice target_delimiter fewshot_delimiter description num_fewshot
    output_type metric_list generation_kwargs repeats filter_list should_decontaminate doc_to_decontamination_query
    gen_prefix metadata""".split()  # noqa: SIM905
)
METRIC_KEYS = ("metric", "aggregation", "higher_is_better", "ignore_case", "ignore_punctuation", "regexes_to_ignore")


def resolve_tasks(names: Sequence[str]) -> tuple[list[Any], Any]:
    """Return what lm-eval's `simple_evaluate` takes as tasks, and its task manager.

    Raises UserError for a name that lm-eval does not have, and for a file that is no task or would run code.
    """
    from lm_eval.tasks import TaskManager

    if not names or not all(names):
        raise UserError(
            f"tasks = {','.join(names)}: expected names of lm-eval, or task files, with commas between them"
        )
    files = [name for name in names if name.endswith(SUFFIXES) or Path(name).is_file()]
    manager = TaskManager(include_defaults=len(files) < len(names))
    resolved: list[Any] = []
    for name in names:
        if name in files:
            resolved.append(read_task(Path(name)))
        elif name in manager.all_tasks:
            resolved.append(name)
        else:
            near = nearest(name, manager.all_tasks)
            hint = f" (nearest: {near})" if near else ""
            raise UserError(f"tasks: {name}: expected a task of lm-eval, or a task file (.yaml){hint}")
    labels = [task if isinstance(task, str) else task["task"] for task in resolved]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"tasks: {label} is named twice")
    return resolved, manager


def read_task(file: Path) -> dict[str, Any]:
    """Read a task file whose data lies on disk, relative to the file.

    Raises UserError where it is no task, its data is missing, or it asks for code to be run: by tags, classes, metrics
    that are programs, or data that is one.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such task file")
    task = yaml_text.read(str(file))
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise UserError(f"{file}: expected a task of lm-eval: a mapping with the key task")
    for key in task:
        if key not in KEYS:
            raise UserError(f"{file}: {key}: expected keys of a task that runs no code: {one_of(key, sorted(KEYS))}")
    for metric in task.get("metric_list") or []:
        _check_metric(file, metric)
    if task.get("dataset_path") not in FORMATS:
        raise UserError(
            f"{file}: dataset_path = {task.get('dataset_path')!r}: expected {one_of(None, FORMATS)}, "
            "and the files in dataset_kwargs.data_files"
        )
    return {**task, "dataset_kwargs": {"data_files": _data_files(file, task.get("dataset_kwargs"))}}


def _check_metric(file: Path, metric: Any) -> None:
    """Raise UserError for a metric that is not one of lm-eval's own."""
    import lm_eval.api.metrics  # noqa: F401  (registers them)
    from lm_eval.api.registry import metric_registry

    name = metric.get("metric") if isinstance(metric, dict) else metric
    if not isinstance(metric, dict) or not isinstance(name, str) or name not in metric_registry:
        near = nearest(str(name), list(metric_registry.keys()))
        raise UserError(f"{file}: metric {name!r}: expected one of lm-eval" + (f" (nearest: {near})" if near else ""))
    for key in metric:
        if key not in METRIC_KEYS:
            raise UserError(f"{file}: metric {name}: {key}: expected {one_of(key, METRIC_KEYS)}")


def _data_files(file: Path, settings: Any) -> dict[str, list[str]]:
    """Return the absolute paths of the data of each split. Raises UserError for anything but files on disk."""
    files = settings.get("data_files") if isinstance(settings, dict) else None
    if not isinstance(settings, dict) or set(settings) != {"data_files"} or not isinstance(files, dict):
        raise UserError(f"{file}: dataset_kwargs: expected data_files alone, with the file of each split")
    found: dict[str, list[str]] = {}
    for split, paths in files.items():
        for path in paths if isinstance(paths, list) else [paths]:
            there = file.parent / str(path)
            if not there.is_file():
                raise UserError(f"{file}: dataset_kwargs.data_files.{split} = {path!r}: no such file as {there}")
            found.setdefault(str(split), []).append(str(there.absolute()))
    return found


@contextlib.contextmanager
def templates_without_code() -> Iterator[None]:
    """Render templates of tasks in a sandbox while the block runs: they reach values, not Python."""
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    usual = utils.env
    utils.env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    utils.env.filters.update(usual.filters)
    try:
        yield
    finally:
        utils.env = usual
