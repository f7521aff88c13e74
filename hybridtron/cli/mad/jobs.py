"""`hybridtron mad run --launch`: the tasks of a suite as jobs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hybridtron.cli.jobs import options_as_arguments, run_jobs
from hybridtron.launcher.job import Job
from hybridtron.mad.scoring.results import RESULTS, key, opened_for_adding, read_rows


def run_tasks_as_jobs(options: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Train each task as a job with a folder of its own, and add the rows of all to the results."""
    folder = options.out / "jobs"
    without = {"launch", "tasks", "out", "json", "help"}
    own = {name: value.absolute() for name in ("config",) if (value := getattr(options, name)) is not None}
    given = argparse.Namespace(**{**vars(options), **own})
    arguments = ["mad", "run", *options_as_arguments(options.parser, given, without)]
    jobs = [
        Job(task, folder / task, arguments=(*arguments, "--tasks", task, "--out", str((folder / task).absolute())))
        for task in tasks
    ]
    try:
        run_jobs(jobs, options.launch, folder)
    finally:
        with opened_for_adding(options.out) as results:
            for job in jobs:
                if (job.folder / RESULTS).is_file():
                    results.add([row for row in read_rows(job.folder)[0] if not results.has(key(row))])
