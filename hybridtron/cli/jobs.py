"""Verbs as jobs of a launch file: submit them, wait, and say how each ended."""

from __future__ import annotations

import argparse
import time
from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.cli.output import terminating_signal_as_interrupt

if TYPE_CHECKING:
    from hybridtron.launcher.job import Job

POLL_SECONDS = 0.5


def add_launch_argument(verb: argparse.ArgumentParser, what: str) -> None:
    """Add --launch; `what` runs as jobs."""
    verb.add_argument("--launch", type=Path, metavar="FILE", help=f"run {what} as jobs of this launch file")


def run_jobs(jobs: Sequence[Job], launch: Path, folder: Path) -> bool:
    """Run jobs to their ends, with a line about each; return whether all finished.

    An interrupt ends jobs of this machine and leaves those of a cluster. It is raised in any case.
    """
    from hybridtron.launcher.config import read_launch
    from hybridtron.launcher.submit import submit
    from hybridtron.reporting.progress import ProgressView

    where, view = read_launch(launch), ProgressView()
    handles = submit(jobs, where, folder)
    left = list(handles)
    view.print(f"{len(left)} jobs" + (f": {', '.join(handle.job_id for handle in left)}" if left[0].job_id else ""))
    try:
        with terminating_signal_as_interrupt():
            while left:
                for handle in [handle for handle in left if handle.state not in ("pending", "running")]:
                    left.remove(handle)
                    view.print(
                        f"{len(jobs) - len(left)}/{len(jobs)} {handle.name}  {handle.state}; see {handle.folder}"
                    )
                if left:
                    time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        if where.cluster == "local":
            for handle in left:
                handle.cancel()
            for handle in left:
                handle.wait()
        else:
            view.print(f"left; these jobs of the cluster go on: {', '.join(handle.job_id for handle in left)}")
        raise
    finally:
        view.close()
    return all(handle.state == "finished" for handle in handles)


def options_as_arguments(
    parser: argparse.ArgumentParser, options: argparse.Namespace, without: Container[str]
) -> list[str]:
    """Return the command-line words that set the options which differ from their defaults; `without` names some."""
    words: list[str] = []
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if not action.option_strings or action.dest in without or value in (None, action.default, []):
            continue
        words.append(max(action.option_strings, key=len))
        if action.nargs != 0:
            words += map(str, value if isinstance(value, list) else [value])
    return words
