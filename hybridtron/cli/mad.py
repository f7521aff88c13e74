"""`hybridtron mad`: write data, train, report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hybridtron.cli.arguments import ArgumentParser, naming_options
from hybridtron.cli.jobs import add_launch_argument
from hybridtron.cli.mad_jobs import run_tasks_as_jobs
from hybridtron.config import yaml_text
from hybridtron.errors import UserError
from hybridtron.files import json_text, new_file
from hybridtron.mad.models.architecture import (
    Architecture,
    from_layers,
    from_model,
    from_pattern,
    with_residual,
    with_width,
)
from hybridtron.mad.models.equal_size import with_size_of
from hybridtron.mad.models.iso_state import iso_state
from hybridtron.mad.models.layers import LAYERS, WIDTH
from hybridtron.mad.models.shrink import DEPTH
from hybridtron.mad.report.write import print_scores, read_scores, write_report
from hybridtron.mad.scoring.aggregate import renamed, scores
from hybridtron.mad.scoring.selection import rows_of_call
from hybridtron.mad.tasks.generate import generate, write_examples
from hybridtron.mad.tasks.protocol import SPLITS, TASKS
from hybridtron.mad.training.device import best_device, default_processes, require_device
from hybridtron.mad.training.presets import PRESETS, Preset, preset, require_at_least_one
from hybridtron.mad.training.progress import SuiteProgress
from hybridtron.mad.training.suite import SuiteFailed, chosen_settings, plan_training, require_seeds, run_suite
from hybridtron.reporting.numbers import plural

# Flags of mad-lab's train.py and benchmark.py that are none here, by what does the same.
_OF_MAD_LAB = {
    "its name with _ and =, such as vocab_size=32, in `mad run` after --set": (
        "vocab-size", "seq-len", "num-train-examples", "frac-noise", "noise-vocab-size", "num-tokens-to-copy",
    ),
    "no flag: it is as in the protocol": (
        "k-motif-size", "v-motif-size", "multi-query", "num-test-examples", "target-ignore-index", "backbone",
        "optimizer", "min-lr", "plateau-patience", "plateau-factor",
    ),
    "--preset: paper has a cosine, madlab what mad-lab's code does": ("scheduler",),
    "--preset search, which stops where accuracy and loss gain no more": ("early-stop", "stop-patience"),
    "--device cpu, cuda or cuda:1": ("accelerator",),
    "--device cuda:1, and a call with an --out of its own for each GPU": ("devices", "gpus"),
    "--nproc": ("cpus", "num-cpus-trial", "num-trials-gpu"),
    "no flag: parameters are float32": ("precision",),
    "--out": ("log-base-path", "logs-path"),
    "no flag: results are rows in --out": ("log-to-csv", "log-to-wandb", "wandb-project", "save-checkpoints"),
    "--data": ("data-path",),
    "no flag: examples are in memory": (
        "num-data-workers", "persistent-data-workers", "persistent-workers", "ray-tmp-path",
    ),
}  # fmt: skip
MAD_LAB_FLAGS = {f"--{flag}": same for same, flags in _OF_MAD_LAB.items() for flag in flags}


def main(arguments: Sequence[str]) -> int:
    """Run the verb and return its exit code: 0 done, 1 failed. Raises UserError for bad input."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if options.run is _data:  # what differs from the baseline may stand before options and after them
        options.changes += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    for word in rest:
        flag = word.partition("=")[0].replace("--no-", "--")
        if flag in MAD_LAB_FLAGS:
            options.parser.error(f"{flag}: is a flag of mad-lab; expected {MAD_LAB_FLAGS[flag]}")
    if rest:
        options.parser.refuse(rest)
    with naming_options(options.parser, options):
        return int(options.run(options))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hybridtron mad", description="Six synthetic tasks for architectures (MAD).")
    verbs = parser.add_subparsers(required=True, metavar="data|run|report")

    verb = verbs.add_parser("data", help="write the examples of one setting")
    verb.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    verb.add_argument("changes", metavar="setting=value", nargs="*", help="what differs from the baseline")
    verb.add_argument("--out", type=Path, required=True, metavar="F.npz", help="gets the arrays inputs and targets")
    verb.add_argument("--split", default="train", metavar="|".join(SPLITS), help="which stream (%(default)s)")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="(%(default)s)")
    verb.set_defaults(run=_data, parser=verb)

    _add_run(verbs)

    verb = verbs.add_parser("report", help="tables and pictures of results")
    verb.add_argument("folders", metavar="DIR", nargs="+", type=Path)
    verb.add_argument("--out", type=Path, metavar="DIR", help="for the report; by default report in the first DIR")
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.set_defaults(run=_report, parser=verb)
    return parser


def _add_run(verbs: argparse._SubParsersAction[ArgumentParser]) -> None:
    verb = verbs.add_parser("run", help="train an architecture on the tasks")
    _add_architecture(verb)
    verb.add_argument("--preset", default="paper", metavar="P", help=f"{', '.join(PRESETS)} (%(default)s)")
    verb.add_argument(
        "--tasks", "--task", nargs="+", action="extend", default=[], metavar="TASK", help="by default all six"
    )
    verb.add_argument(
        "--data", metavar="DIR", help="examples as mad-lab stores them (its Zenodo record), with --preset madlab"
    )
    verb.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="setting=value", dest="changes",
        help="one setting of each task alone: the baseline with these changes",
    )  # fmt: skip
    verb.add_argument("--seeds", nargs="+", action="extend", type=int, metavar="N", help="of data and weights (0)")
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
    verb.add_argument("--json", action="store_true", help="for programs")
    verb.set_defaults(run=_run, parser=verb)


def _add_architecture(verb: ArgumentParser) -> None:
    """Add the options that say what is trained."""
    what = verb.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--layers", nargs="+", action="extend", metavar="LAYER", help=f"in their order, of {', '.join(LAYERS)}"
    )
    what.add_argument("--pattern", metavar="PATTERN", help='of layers, such as "2*(mamba mlp)"')
    what.add_argument("--config", type=Path, metavar="CONFIG", help="a run's config, or its folder: made small")
    verb.add_argument("--depth", type=int, metavar="N", help=f"layers kept of --config ({DEPTH})")
    verb.add_argument(
        "--dim", type=int, metavar="N", dest="hidden_size", help=f"width of --layers and --pattern ({WIDTH})"
    )
    verb.add_argument(
        "--residual", nargs="+", metavar="TYPE key=value",
        help="residual topology, as a run's model.residual (that of --config, else plain)",
    )  # fmt: skip
    verb.add_argument("--iso-state", action="store_true", help="change layers so that the state is 4,096 in all")
    verb.add_argument(
        "--match-parameters", metavar="PATTERN", help="a baseline of MAD layers, whose number of parameters to have"
    )
    verb.add_argument(
        "--adjust", metavar="KEY",
        help="the width changed for that, such as model.hidden_size (that of the largest feed-forward layer)",
    )  # fmt: skip


def _data(options: argparse.Namespace) -> int:
    with new_file(options.out) as file:
        inputs, targets = generate(options.task, changed_settings(options.changes), options.split, options.seed)
        write_examples(file, inputs, targets)
    print(f"{options.out}: {len(inputs):,} examples of {inputs.shape[1]} tokens", file=sys.stderr)
    return 0


def _run(options: argparse.Namespace) -> int:
    options.seeds = require_seeds(options.seeds or [0])
    require_at_least_one(processes=options.processes)
    changes = ("max_steps", "epochs", "batch_size", "lr", "weight_decay", "data", "halving")
    chosen = preset(options.preset, **{name: getattr(options, name) for name in changes})
    architecture = _architecture(options, chosen)
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


def _report(options: argparse.Namespace) -> int:
    made, warnings = read_scores(options.folders)
    out = options.out or options.folders[0] / "report"
    write_report(made, warnings, out)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json_text([score.as_json() for score in made]))
    else:
        print_scores(made)
        print(f"\n{out / 'report.html'}")
    return 0


def _architecture(options: argparse.Namespace, chosen: Preset) -> Architecture:
    if options.config is None and options.depth is not None:
        raise UserError(f"--depth {options.depth}: is for --config, whose layers may be many; expected none here")
    if options.config is not None and options.hidden_size is not None:
        raise UserError(f"--dim {options.hidden_size}: is for --layers and --pattern; expected none with --config")
    if options.layers is not None:
        made = from_layers(options.layers, chosen.match_mad_lab)
    elif options.pattern is not None:
        made = from_pattern(options.pattern, chosen.match_mad_lab)
    else:
        from hybridtron.config.load import load
        from hybridtron.training.config import RunConfig

        of_run = options.config / "config.yaml"
        config = load(of_run if of_run.is_file() else options.config, [], RunConfig)
        made = from_model(config.name, config.model, DEPTH if options.depth is None else options.depth)
        if chosen.match_mad_lab:
            made = replace(made, notes=(*made.notes, "its own layers, without mad-lab's routing and heads"))
    if options.hidden_size is not None:
        made = with_width(made, options.hidden_size)
    if options.residual is not None:
        made = with_residual(made, _residual(options.residual))
    made = iso_state(made) if options.iso_state else made
    if options.match_parameters is None:
        if options.adjust is not None:
            raise UserError(f"adjust = {options.adjust}: is for match_parameters; expected a baseline there")
        return made
    try:
        baseline = from_pattern(options.match_parameters, chosen.match_mad_lab)
    except UserError as error:
        raise UserError(f"match_parameters = {options.match_parameters}: {error}") from None
    if options.hidden_size is not None:
        baseline = with_width(baseline, options.hidden_size)
    return with_size_of(made, baseline, adjust=options.adjust)


def _residual(words: Sequence[str]) -> dict[str, Any]:
    """Read a topology's type and its `key=value` words as a `model.residual` section."""
    section: dict[str, Any] = {"type": words[0]}
    for word in words[1:]:
        key, equals, value = word.partition("=")
        if not (key and equals) or key in section:
            raise UserError(f"residual: {word!r}: expected key=value, such as streams=4, each once")
        section[key] = yaml_text.parse(value)
    return section


def changed_settings(words: Sequence[str]) -> dict[str, int | float]:
    """Read `key=value` words as a setting; what the keys may be is for the task to say."""
    setting: dict[str, int | float] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise UserError(f"{word!r}: expected setting=value, such as vocab_size=32")
        if key in setting:
            raise UserError(f"{word!r}: {key} is given already; expected each setting once")
        try:
            setting[key] = int(value)
        except ValueError:
            try:
                setting[key] = float(value)
            except ValueError:
                raise UserError(f"{key} = {value}: expected a number") from None
    return setting
