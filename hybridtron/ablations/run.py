"""Run an ablation from its config to its page; started again, it trains only what is missing or failed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybridtron.ablations.cells import CellRun, Plan, make_plan
from hybridtron.ablations.config import AblationConfig
from hybridtron.ablations.events import Event, OnEvent
from hybridtron.ablations.jobs import train_as_jobs
from hybridtron.ablations.local import LocalRun, train_here
from hybridtron.ablations.report import text  # noqa: F401  # registers how an ablation is printed
from hybridtron.ablations.report.page import write_page
from hybridtron.ablations.results import Ablation, read_results
from hybridtron.ablations.study import Status, Study
from hybridtron.config.load import load
from hybridtron.errors import UserError
from hybridtron.launcher.config import LaunchConfig, read_launch


@dataclass
class Progress:
    """State of a study while it runs: how many runs have ended, and the last step and loss of those at work."""

    total: int
    finished: int
    failed: int = 0
    steps: Mapping[str, int] = field(default_factory=dict)  # of each run that trains, in all
    running: dict[str, Event] = field(default_factory=dict)
    last: tuple[str, Event] | None = None  # name of a run and what happened to it


Watch = Callable[[Progress], None]


def ablate(
    config: str | os.PathLike[str] | Mapping[str, Any],
    *overrides: str,
    launch: str | os.PathLike[str] | dict[str, Any] | None = None,
    on_progress: Watch | None = None,
) -> Ablation:
    """Run the ablation that a config describes, or what is missing of it, and return what it found.

    Args:
        config: a YAML file, or a dict with its keys (docs/ablations.md).
        overrides: `key=value`, such as `seeds=[0, 1, 2]`.
        launch: a launch file, or a dict with its keys, whose jobs train the runs; by default processes of this machine
            train one run after another.
        on_progress: called with the state of the study whenever it has changed.

    Raises:
        UserError: where a cell does not fit its config, its data or its reference's size; nothing is written then.
    """
    where = None if launch is None else read_launch(launch)
    return run_ablation(load(config, overrides, AblationConfig), where, on_progress)[0]


def run_ablation(
    config: AblationConfig, launch: LaunchConfig | None = None, on_progress: Watch | None = None
) -> tuple[Ablation, Path]:
    """Train what is missing of a study, write its page, and return its results and the page.

    Raises UserError as `ablate` does.
    """
    plan = make_plan(config)
    study = Study(plan)
    study.open()
    with closing(study):
        status = study.status()
        missing = status.missing(plan)
        watched = _watched(study, status, on_progress or (lambda progress: None))
        if launch is None and any(run.config.parallel.model_size > 1 for run in missing):
            launch = LaunchConfig()  # a run of several processes is a job, also on this machine
        if launch is not None:
            train_as_jobs(study, missing, launch, watched)
        elif missing:
            _train_here(study, missing, watched)
        return _write(study)


def _train_here(study: Study, missing: list[CellRun], on_event: OnEvent) -> None:
    """Train runs in processes of this machine."""
    logs = study.folder / "logs"
    logs.mkdir(exist_ok=True)
    runs = [LocalRun(run.name, study.config_file(run), logs / f"{run.name}.log") for run in missing]
    train_here(runs, study.plan.config.max_parallel, on_event)


def report_ablation(config: AblationConfig) -> tuple[Ablation, Path]:
    """Write the page of what is finished so far, beside any process that runs the study.

    Raises UserError where there is no such study.
    """
    study = Study(make_plan(config))
    study.require_usable()
    if not study.folder.is_dir():
        raise UserError(f"study folder {study.folder}: holds no study; expected one that was started")
    return _write(study)


def read_ablation(config: AblationConfig) -> Ablation:
    """Return the plan and the state of a study; nothing is trained or written."""
    study = Study(make_plan(config))
    study.require_usable()
    return read_results(study)


def _write(study: Study) -> tuple[Ablation, Path]:
    ablation = read_results(study)
    return ablation, write_page(ablation, study.folder)


def _watched(study: Study, status: Status, watch: Watch) -> OnEvent:
    """Return a function that records what happens to runs, and shows it."""
    plan: Plan = study.plan
    steps = {run.name: run.config.train.steps for run in plan.runs}
    progress = Progress(len(plan.runs), len(status.finished), steps=steps)

    def receive(name: str, event: Event) -> None:
        if event.kind == "step":
            progress.running[name] = event
        else:
            progress.running.pop(name, None)
            study.record(name, event.cause if event.kind == "failed" else None)
            progress.finished += event.kind == "finished"
            progress.failed += event.kind == "failed"
        progress.last = (name, event)
        watch(progress)

    watch(progress)
    return receive
