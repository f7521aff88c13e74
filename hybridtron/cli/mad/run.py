"""`hybridtron mad run`: train an architecture on the tasks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.jobs import add_launch_argument
from hybridtron.cli.mad.architecture import add_architecture_arguments, chosen_architecture
from hybridtron.cli.mad.jobs import run_tasks_as_jobs
from hybridtron.cli.mad.settings import changed_settings
from hybridtron.files import json_text
from hybridtron.mad.report.write import print_scores
from hybridtron.mad.scoring.aggregate import renamed, scores
from hybridtron.mad.scoring.selection import rows_of_call
from hybridtron.mad.training.device import best_device, default_processes, require_device
from hybridtron.mad.training.presets import PRESETS, preset, require_at_least_one
from hybridtron.mad.training.progress import SuiteProgress
from hybridtron.mad.training.suite import SuiteFailed, chosen_settings, plan_training, require_seeds, run_suite
from hybridtron.reporting.numbers import plural

SUMMARY = "train an architecture on the tasks"


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add_architecture_arguments(verb)
    verb.add_argument("--preset", default="paper", metavar="P", help=f"{', '.join(PRESETS)} (%(default)s)")
    verb.add_argument("--tasks", "--task", nargs="+", action="extend", metavar="TASK", help="by default all six")
    verb.add_argument(
        "--data", metavar="DIR", help="examples as mad-lab stores them (its Zenodo record), with --preset madlab"
    )
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="setting=value", dest="changes",
        help="one setting of each task alone: the baseline with these changes",
    )  # fmt: skip
    verb.add_argument(
        "--seeds", "--seed", nargs="+", action="extend", type=int, metavar="N", help="of data and weights (0)"
    )
    verb.add_argument(
        "--steps", type=int, metavar="N", dest="max_steps", help="at most so many, in place of the preset's"
    )
    for name in ("--epochs", "--batch-size"):
        verb.add_argument(name, type=int, metavar="N", help="in place of the preset's")
    for name in ("--lr", "--weight-decay"):
        verb.add_argument(
            name, nargs="+", action="extend", type=float, metavar="X", help="of the cells, in place of the preset's"
        )
    verb.add_argument(
        "--halving", action="store_true", default=None,
        help="end the worse half of each seed's cells early, at an eighth, a quarter and a half of the steps",
    )  # fmt: skip
    verb.add_argument(
        "--out", type=Path, default=Path("checkpoints/mad"), metavar="DIR", help="gets the results (%(default)s)"
    )
    verb.add_argument(
        "--nproc", type=int, metavar="N", dest="processes", help="processes; by default one per core, or one on a GPU"
    )
    verb.add_argument(
        "--device", default=None, metavar="D", help="cpu, cuda or cuda:1; by default cuda where there is one"
    )
    add_launch_argument(verb, "each task")
    verb.add_argument("--dry-run", action="store_true", help="say what there is to train, and stop")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Train, or say what there is to train. Returns 1 where cells are missing, 130 where it was interrupted."""
    options.seeds = require_seeds(options.seeds or [0])
    require_at_least_one(processes=options.processes)
    changes = ("max_steps", "epochs", "batch_size", "lr", "weight_decay", "data", "halving")
    chosen = preset(options.preset, **{name: getattr(options, name) for name in changes})
    architecture = chosen_architecture(options, chosen)
    settings = chosen_settings(chosen, options.tasks, changed_settings(options.changes))
    device = options.device or best_device()
    require_device(device)
    processes = options.processes or default_processes(device)
    planned = plan_training(architecture, chosen, settings, options.seeds, options.out)
    if options.dry_run:
        print(json_text(planned._asdict()) if options.json else f"{architecture.name}: {planned}")
        return 0
    view = SuiteProgress(chosen.accuracy)
    view.print(f"{architecture.name}: {planned}")
    for note in architecture.notes:
        view.print(f"{architecture.name}: {note}")
    if chosen.select_split == "test":
        view.print(f"preset {chosen.name}: the best cell is chosen on the test split, as mad-lab does")
    if options.launch is not None and planned.missing:
        run_tasks_as_jobs(options, list(dict.fromkeys(name for name, _ in settings)))
        left = plan_training(architecture, chosen, settings, options.seeds, options.out).missing
        if left:
            missing = plural(left, "cell is", "cells are")
            view.print(f"{missing} missing; what is done is in {options.out}, the same command goes on")
            return 1
    try:
        rows = run_suite(
            architecture,
            chosen,
            settings,
            options.seeds,
            options.out,
            processes=processes,
            device=device,
            on_unit=view.unit,
            on_step=view.steps,
            on_warning=lambda text: view.print(f"warning: {text}"),
        )
    except SuiteFailed as error:
        print(f"hybridtron: stopped: {error}; what is done is in {options.out}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        view.print(f"hybridtron: interrupted; the cells that ended are in {options.out}, the same command goes on")
        return 130
    finally:
        view.close()
    counted = rows_of_call(rows, chosen, settings, options.seeds) if options.changes else rows
    found = scores(counted, protocol_only=not options.changes)
    named = [renamed(score, architecture.name, architecture.notes) for score in found]
    made = [score for score, _ in named]
    for line in (*(told for _, told in named if told), *(line for score in made for line in score.left_out)):
        view.print(line)
    if options.json:
        print(json_text([score.as_json() for score in made]))
    else:
        print_scores(made)
    return 0
