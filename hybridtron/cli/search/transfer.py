"""`hybridtron search transfer`: does a search's order of patterns hold in large?"""

from __future__ import annotations

import argparse
from pathlib import Path

from hybridtron.cli.arguments import ArgumentParser, add_json_argument
from hybridtron.cli.output import print_result, terminating_signal_as_interrupt
from hybridtron.errors import UserError

SUMMARY = "grow patterns of a search at equal size, train them, and compare their order with the search's"
LISTS = ("sizes", "baselines", "seeds")
CHOICES = (*LISTS, "overrides", "patterns", "of", "tolerance", "keep_blocks", "noise", "out")


def add_arguments(verb: ArgumentParser) -> None:
    """Add the arguments of the verb."""
    add = verb.add_argument
    add("folder", metavar="FOLDER", type=Path, help="of a search")
    add(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="dotted keys of the target, such as train.steps=60",
    )
    add("--target", type=Path, required=True, metavar="CONFIG", help="a YAML file: widths, size, recipe and data")
    add("--sizes", nargs="+", default=[], metavar="SIZE", help="in the target's table, by default as it is written")
    add("--method", choices=["stretch", "stack"], required=True, help="longer runs, or more copies")
    add(
        "--patterns",
        type=int,
        default=5,
        metavar="N",
        help="best, worst, and evenly spaced ranks between (%(default)s)",
    )
    add("--baselines", nargs="+", default=[], metavar="PATTERN", help="beside them, such as 3A+3M, or by name: 3:1")
    add("--seeds", nargs="+", default=["0", "1"], metavar="N", help="of each model (0 1)")
    equal = ["parameters", "non_embedding", "flops", "state"]
    add("--of", choices=equal, default="parameters", help="what is made equal (%(default)s)")
    add("--tolerance", type=float, default=0.01, metavar="X", help="largest relative difference (%(default)s)")
    add("--keep-blocks", metavar="CONFIG", help="the small model's or search's config: keep its blocks")
    add("--noise", type=float, metavar="X", help="standard deviation of one score over seeds, where it is known")
    add("--out", type=Path, metavar="DIR", help="folder of the study (FOLDER/transfer)")
    add("--workers", type=int, default=1, metavar="N", help="processes to start here (%(default)s)")
    add("--report", action="store_true", help="train nothing: the page of what is recorded so far")
    add_json_argument(verb)


def run(options: argparse.Namespace) -> int:
    """Run or report a study. Returns 1 where no model has a loss."""
    from hybridtron.composer.report.transfer import PAGE
    from hybridtron.composer.transfer.run import prepare_transfer
    from hybridtron.composer.transfer.work import Results
    from hybridtron.distributed.process_groups.environment import read_environment
    from hybridtron.reporting.progress import ProgressView

    if options.workers < 1:
        raise UserError(f"workers = {options.workers}: expected at least 1")
    _sort_words(options)
    chosen = {name: getattr(options, name) for name in CHOICES}
    study = prepare_transfer(options.folder, options.target, options.method, **chosen)
    if options.workers > 1 and not options.report:
        return _launch_workers(options)
    view = ProgressView(quiet=read_environment().rank > 0, seconds_between_lines=0)

    def watch(results: Results, total: int) -> None:
        done = sum(unit in results for unit in study.work.units)
        view.update("transfer", done, total, "", f"transfer: {done}/{total} trained")

    try:
        with terminating_signal_as_interrupt():
            found = study.run(watch, only_report=options.report)
    except KeyboardInterrupt:
        view.print("stopped; the same command goes on with what is recorded")
        raise
    finally:
        view.close()
    print_result(found, options.json)
    if not options.json:
        print(f"page {study.folder / PAGE}")
    losses = [loss for size in found.sizes for one in size.grown for loss in one.losses.values()]
    return 0 if any(loss is not None for loss in losses) else 1


def _sort_words(options: argparse.Namespace) -> None:
    """Take overrides from the ends of the lists that they were written behind, and read the seeds."""
    for name in LISTS:
        words = getattr(options, name)
        options.overrides = [*options.overrides, *(word for word in words if "=" in word)]
        setattr(options, name, [word for word in words if "=" not in word])
    for word in options.seeds:
        if not word.isdecimal():
            raise UserError(f"seeds = {word}: expected whole numbers of at least 0")
    options.seeds = [int(word) for word in options.seeds]


def _launch_workers(options: argparse.Namespace) -> int:
    """Start several workers on this machine, of which the first reports. Returns the exit code."""
    from hybridtron.distributed.process_groups.launch import launch, python_command

    words = ["search", "transfer", str(options.folder), *options.overrides]
    words += ["--target", str(options.target), "--method", options.method, *["--json"] * options.json]
    for name in CHOICES:
        value = getattr(options, name)
        if name != "overrides" and value not in (None, []):
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    return launch(python_command(*words), options.workers)
