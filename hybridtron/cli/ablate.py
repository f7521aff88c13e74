"""`hybridtron ablate`: run an ablation or a scaling ladder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hybridtron.cli.arguments import ArgumentParser, add_config_arguments, add_json_argument, add_print_argument
from hybridtron.cli.output import print_result, terminating_signal_as_interrupt

if TYPE_CHECKING:
    from hybridtron.ablations.config import AblationConfig
    from hybridtron.ablations.results import Ablation


SUMMARY = "run an ablation or a scaling ladder, or what is missing of it"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_config_arguments(verb, "max_parallel=4")
    verb.add_argument("--launch", type=Path, metavar="FILE", help="train as jobs of this launch file, such as on SLURM")
    verb.add_argument("--dry-run", action="store_true", help="train nothing: list the runs with their size and state")
    verb.add_argument("--report", action="store_true", help="train nothing: the page of what is finished so far")
    add_print_argument(verb)
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Run, list or report an ablation. Returns 1 where a run failed or stopped."""
    from hybridtron.ablations.config import AblationConfig
    from hybridtron.ablations.jobs import describe_jobs
    from hybridtron.ablations.run import read_ablation, report_ablation
    from hybridtron.config.load import dump, load
    from hybridtron.launcher.config import read_launch

    config = load(options.config, options.overrides, AblationConfig)
    if options.show:
        print(dump(config), end="")
        return 0
    if options.dry_run:
        ablation = read_ablation(config)
        where = None if options.launch is None else read_launch(options.launch)
        jobs = (
            None if where is None else describe_jobs(ablation.status.missing(ablation.plan), where, config.max_parallel)
        )
        _list(ablation, options.json)
        if jobs and not options.json:
            print(jobs)
        return 0
    with terminating_signal_as_interrupt():
        ablation, page = report_ablation(config) if options.report else _run(config, options.launch)
    print_result(ablation, options.json)
    if not options.json:
        print(f"page {page}")
    return 1 if (ablation.failures or ablation.missing) and not options.report else 0


def _list(ablation: Ablation, as_json: bool) -> None:
    from hybridtron.ablations.report import tables

    if as_json:
        print_result(ablation, as_json)
    else:
        print(tables.plan(ablation).to_terminal(), end="")


def _run(config: AblationConfig, launch: Path | None) -> tuple[Ablation, Path]:
    """Run the ablation with its progress in the terminal."""
    from hybridtron.ablations.report.text import StudyProgress
    from hybridtron.ablations.run import run_ablation
    from hybridtron.launcher.config import read_launch

    where = None if launch is None else read_launch(launch)
    view = StudyProgress(config.name)
    try:
        return run_ablation(config, where, view.watch)
    except KeyboardInterrupt:
        on_cluster = where is not None and where.cluster != "local"
        view.print(
            "left; jobs of the cluster go on, and the same command follows them"
            if on_cluster
            else "stopped; the same command goes on with what is missing"
        )
        raise
    finally:
        view.close()
