"""Score checkpoints of this project on the MAD tasks, and see whether the scores order them as their losses do.

    python tools/rerun_mad.py checkpoints/a checkpoints/b/step_00002000 --out mad_of_checkpoints
    python tools/rerun_mad.py checkpoints/* --mode probe --tasks memorization compression --out probes

proxy rebuilds the architecture at width 128 and trains it from scratch, of a model that `hybridtron scale` grew the
small pattern that its config records; finetune and probe keep the trained layers under a fresh embedding and head, all
trainable or frozen. DIR gets results.jsonl, a report, and with two or more
checkpoints correlation.json and correlation.png: MAD score against the loss on held-out text, in nats per token, or in
bits per byte where tokenizers differ. What is trained from the same start is one point: with proxy, all checkpoints
whose architectures shrink to the same model.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridtron.cli.arguments import ArgumentParser, naming_options
from hybridtron.cli.exit_code import exit_code
from hybridtron.cli.mad.settings import changed_settings
from hybridtron.mad.checkpoints import MODES, CheckpointScores, score_checkpoints
from hybridtron.mad.models.shrink import DEPTH
from hybridtron.mad.report.write import print_scores
from hybridtron.mad.training.device import best_device, default_processes
from hybridtron.mad.training.presets import PRESETS, preset
from hybridtron.mad.training.suite import Progress, SuiteFailed


def parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rerun_mad.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="a run folder, or one checkpoint in it")
    add("--out", type=Path, required=True, metavar="DIR", help="gets results, report and correlation")
    add("--mode", choices=MODES, default="proxy", help="(%(default)s)")
    add("--preset", default="search", metavar="P", help=f"{', '.join(PRESETS)} (%(default)s)")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    add("--tasks", **several, metavar="TASK", help="by default all six")
    add("--set", **several, default=[], metavar="setting=value", dest="changes", help="one setting of each task alone")
    add("--seeds", **several, type=int, default=[], metavar="N", help="of data and fresh weights (0)")
    add("--steps", type=int, metavar="N", dest="max_steps", help="at most so many, in place of the preset's")
    add("--batch-size", type=int, metavar="N", help="in place of the preset's")
    add("--depth", type=int, metavar="N", help=f"layers kept by proxy ({DEPTH})")
    add("--iso-state", action="store_true", help="proxy: change layers so that the state is 4,096 in all")
    add("--data", metavar="PREFIX", help="held-out tokens for the loss; by default each run's data.valid")
    add("--sequences", type=int, metavar="N", help="held-out sequences; by default each run's own number")
    add("--nproc", type=int, metavar="N", dest="processes", help="processes; by default one per core, or one on a GPU")
    add("--device", metavar="D", default=best_device(), help="cpu, cuda or cuda:1; by default cuda where there is one")
    add("--json", action="store_true", help="for programs")
    return parser


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options; raises UserError for a setting that is no number."""
    options = parser().parse_args(arguments)
    options.seeds = list(dict.fromkeys(options.seeds or [0]))
    options.setting = changed_settings(options.changes)
    if options.processes is None:
        options.processes = default_processes(options.device)
    return options


def score(options: argparse.Namespace, console: Console) -> CheckpointScores:
    """Score the checkpoints with progress on `console`."""

    def on_progress(path: Path, progress: Progress) -> None:
        console.print(f"{path}  {progress.done}/{progress.total}  {progress.unit.task}")

    same = "out mode tasks setting seeds depth iso_state data sequences processes device"
    return score_checkpoints(
        options.checkpoints,
        preset=preset(options.preset, max_steps=options.max_steps, batch_size=options.batch_size),
        on_progress=on_progress,
        on_message=console.print,
        **{name: getattr(options, name) for name in same.split()},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, and return the exit code: 0 done, 1 a process died, 130 interrupted. Raises UserError, OSError."""
    for module in ("megatron", "torch"):  # notes of libraries to their developers
        warnings.filterwarnings("ignore", module=module)
    options = parsed(arguments)
    with naming_options(parser(), options):
        return run(options)


def run(options: argparse.Namespace) -> int:
    """Score, and print the result or one line that says why there is none. Return the exit code."""
    try:
        found = score(options, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))
    except SuiteFailed as error:
        print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hybridtron: interrupted; what is done is in {options.out}, the same command goes on", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(found.as_json(), indent=2))
        return 0
    print_scores(found.trained)
    verdict = (found.correlation or {}).get("verdict", [])
    print("\n".join([*verdict, str(options.out / "report" / "report.html")]))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
