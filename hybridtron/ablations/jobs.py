"""Runs as jobs of a launch file: an array on SLURM, or supervised processes of this machine."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Sequence
from typing import Any

from hybridtron.ablations.cells import CellRun
from hybridtron.ablations.events import Event, OnEvent
from hybridtron.ablations.study import Study
from hybridtron.files import read_last_row, read_object, replace_file
from hybridtron.launcher.allocation import allocation_of
from hybridtron.launcher.config import LaunchConfig
from hybridtron.launcher.job import Job
from hybridtron.launcher.schedulers.handle import Handle
from hybridtron.launcher.schedulers.slurm import SlurmHandle, SlurmQueue
from hybridtron.launcher.submit import submit
from hybridtron.reporting.numbers import plural
from hybridtron.training.run_folder.folder import RunFolder
from hybridtron.training.run_folder.submitted import read_submitted

JOBS = "jobs.json"  # of a study: the numbers of the jobs that were submitted to SLURM, by run
POLL_SECONDS = 0.5


def train_as_jobs(study: Study, runs: Sequence[CellRun], launch: LaunchConfig, on_event: OnEvent) -> None:
    """Submit the runs, at most max_parallel at once, and wait for their ends; a run whose job still waits or trains is
    not submitted again.

    An interrupt saves and ends jobs of this machine; those of a cluster go on. It is raised in any case.
    """
    handles = _attached(study, runs)
    jobs = [Job(run.name, run.config.run_folder, run.config) for run in runs if run.name not in handles]
    for handle in submit(jobs, launch, study.folder, study.plan.config.max_parallel):
        handles[handle.name] = handle
    numbers = {name: handle.job_id for name, handle in handles.items() if handle.job_id}
    if numbers:
        replace_file(study.folder / JOBS, json.dumps(numbers, indent=2) + "\n")
    try:
        _follow({run.name: run for run in runs}, handles, on_event)
    except KeyboardInterrupt:
        if not numbers:
            for handle in handles.values():
                handle.cancel()
            for handle in handles.values():
                handle.wait()
        raise


def describe_jobs(runs: Sequence[CellRun], launch: LaunchConfig, max_parallel: int | None) -> str:
    """Return which jobs `train_as_jobs` would submit for runs, in a line. Raises UserError where one does not fit."""
    sizes = {allocation_of(Job(run.name, run.config.run_folder, run.config), launch) for run in runs}
    found = ", ".join(
        f"{plural(size.nodes, 'node')} x {size.processes_per_node}"
        for size in sorted(sizes, key=lambda size: size.processes)
    )
    at_once = f", at most {max_parallel} at once" if max_parallel else ""
    return f"{plural(len(runs), 'job')} ({launch.cluster}){at_once}" + (f", of {found} processes" if found else "")


def waiting_jobs(study: Study) -> list[str]:
    """Return the numbers of the jobs on a cluster that wait or train for runs of the study."""
    return [handle.job_id for handle in _attached(study, study.status().missing(study.plan)).values()]


def _attached(study: Study, runs: Sequence[CellRun]) -> dict[str, Handle]:
    """Return the jobs of an earlier start that still wait or train, by run."""
    numbers = read_object(study.folder / JOBS)
    known = []
    for run in runs:  # after an interrupt while jobs are submitted, only the run folders hold their numbers
        number = str(read_submitted(run.config.run_folder).get("job") or numbers.get(run.name))
        if re.fullmatch(r"[0-9]+(_[0-9]+)?", number):
            known.append((run, number))
    queue = SlurmQueue([number for _, number in known])
    found: dict[str, Handle] = {}
    for run, number in known:
        handle = SlurmHandle(run.name, run.config.run_folder.absolute(), number, queue)
        try:
            if handle.state in ("pending", "running"):
                found[run.name] = handle
        except FileNotFoundError:  # no squeue: not a machine of that cluster
            return {}
    return found


def _follow(runs: dict[str, CellRun], handles: dict[str, Handle], on_event: OnEvent) -> None:
    """Report steps and ends of the jobs until all are over."""
    steps: dict[str, int] = {}
    left = dict(handles)
    while left:
        for name, handle in list(left.items()):
            state = handle.state
            if state == "running":
                row: dict[str, Any] = {}
                with contextlib.suppress(OSError):  # a file system may be away for a while
                    row = read_last_row(RunFolder(handle.folder).metrics_file) or {}
                step = row.get("step")
                if isinstance(step, int) and step > steps.get(name, 0):
                    steps[name] = step
                    on_event(name, Event("step", step, row.get("loss")))
            elif state != "pending":
                del left[name]
                on_event(name, _end(runs[name], handle))
        if left:
            time.sleep(POLL_SECONDS)


def _end(run: CellRun, handle: Handle) -> Event:
    """Return how a job ended, by what is in its folder."""
    summary = RunFolder(handle.folder).read_summary(run.config.train.steps)
    if summary:
        return Event("finished", run.config.train.steps, summary.get("valid_loss"))
    if handle.state in ("stopped", "cancelled"):
        return Event("stopped")
    cause = read_object(handle.folder / "launch" / "result.json").get("cause")
    return Event("failed", cause=str(cause or f"the job ended without a result; see {handle.folder / 'logs'}"))
