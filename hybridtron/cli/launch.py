"""`hybridtron launch`: train on a cluster, or on this machine with restarts."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments

SUMMARY = "train as a job that is started again after failures, on SLURM or on this machine"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb)
    verb.add_argument("--launch", required=True, type=Path, metavar="FILE", help="such as configs/launch/slurm.yaml")
    verb.add_argument(
        "--dry-run",
        action="store_true",
        help="print the batch script, or what this machine would start, and start nothing",
    )
    verb.add_argument(
        "--wait", action="store_true", help="wait for the end of a job on a cluster; locally it always is"
    )


def run(options: argparse.Namespace) -> int:
    """Launch the run. Returns 1 where it failed."""
    from hybridtron.api.launching import prepare
    from hybridtron.launcher.foreground import run_local
    from hybridtron.launcher.submit import dry_run, submit

    job, launch = prepare(options.config, *options.overrides, launch=options.launch)
    if options.dry_run:
        print(dry_run(job, launch), end="")
        return 0
    if launch.cluster == "local":
        return run_local(job, launch)
    (handle,) = submit([job], launch)
    print(f"job {handle.job_id} ({job.name}), run folder {job.folder}")
    code = handle.wait() if options.wait else 0
    if code:
        print(f"hybridtron: job {handle.job_id} {handle.state}: {handle.cause}", file=sys.stderr)
    return code
