"""Score checkpoints of this project on the MAD tasks, and see whether the scores order them as their losses do.

    python tools/rerun_mad.py checkpoints/a checkpoints/b/step_00002000 --out mad_of_checkpoints
    python tools/rerun_mad.py checkpoints/* --mode probe --tasks memorization compression --out probes

proxy rebuilds the architecture at width 128 and trains it from scratch; finetune and probe keep the trained layers
under a fresh embedding and head, all trainable or frozen. DIR gets results.jsonl, a report, and with two or more
checkpoints correlation.json and correlation.png: MAD score against the loss on held-out text.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridtron.arguments import ArgumentParser
from hybridtron.errors import UserError
from hybridtron.laws import Fit, Runs, fit
from hybridtron.laws.plots import draw
from hybridtron.mad import (
    DEPTH,
    PRESETS,
    Preset,
    SuiteFailed,
    chosen_settings,
    from_model,
    iso_state,
    preset,
    run_suite,
    scores,
    transplant,
)
from hybridtron.mad.command import changed_settings, chosen_device, default_processes, require_counts
from hybridtron.mad.report import print_scores, write_report
from hybridtron.mad.subject import Subject
from hybridtron.mad.suite import Progress
from hybridtron.train.evaluate import evaluate_run, trained_model
from hybridtron.train.run_folder import read_run

MODES = ("proxy", "finetune", "probe")


def parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="rerun_mad.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="a run folder, or one checkpoint in it")
    add("--out", type=Path, required=True, metavar="DIR", help="gets results, report and correlation")
    add("--mode", choices=MODES, default="proxy", help="(%(default)s)")
    add("--preset", default="search", metavar="P", help=f"{', '.join(PRESETS)} (%(default)s)")
    add("--tasks", nargs="+", default=[], metavar="TASK", help="by default all six")
    add("--set", nargs="+", default=[], metavar="setting=value", dest="changes", help="one setting of each task alone")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="of data and fresh weights (0)")
    add("--steps", type=int, metavar="N", help="at most so many, in place of the preset's")
    add("--batch-size", type=int, metavar="N", help="in place of the preset's")
    add("--depth", type=int, default=DEPTH, metavar="N", help="layers kept by proxy (%(default)s)")
    add("--iso-state", action="store_true", help="proxy: change layers so that the state is 4,096 in all")
    add("--data", metavar="PREFIX", help="held-out tokens for the loss; by default each run's data.valid")
    add("--sequences", type=int, metavar="N", help="held-out sequences; by default each run's own number")
    add("--nproc", type=int, metavar="N", help="processes; by default one per core, or one on a GPU")
    add("--device", metavar="D", help="cpu or cuda; by default cuda where there is one")
    add("--json", action="store_true", help="for programs")
    return parser


def subject(path: Path, options: argparse.Namespace) -> Subject:
    """What a checkpoint becomes under the mode."""
    config, checkpoint = read_run(path)
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    if options.mode == "proxy":
        made = from_model(config.name, config.model, options.depth)
        return iso_state(made) if options.iso_state else made
    with trained_model(path) as (config, _, model, _):
        return transplant(name, config.model, dict(model.named_parameters()), options.mode)


def rerun(options: argparse.Namespace, chosen: Preset, console: Console) -> dict[str, Any]:
    """Train, report, correlate; returns what --json prints."""
    settings = chosen_settings(chosen, options.tasks, changed_settings(options.changes))
    device = chosen_device(options.device)
    paths = list(dict.fromkeys(options.checkpoints))
    subjects = [subject(path, options) for path in paths]
    losses = [evaluate_run(path, options.data, options.sequences)["loss"] for path in paths] if len(paths) > 1 else []
    rows = []
    for path, one in zip(paths, subjects, strict=True):
        rows += run_suite(
            one, chosen, settings, options.seeds, options.out,
            processes=options.nproc or default_processes(device), device=device,
            on_unit=partial(_say, console, path),
            on_warning=lambda text: console.print(f"warning: {text}"),
        )  # fmt: skip
    unique = {(row["fingerprint"], json.dumps(row["setting"]), row["task"], row["lr"], row["weight_decay"],
               row["seed"]): row for row in rows}  # fmt: skip
    made = scores(list(unique.values()))
    write_report(made, [line for score in made for line in score.left_out], options.out / "report")
    by_identity = {score.identity: score for score in made}
    found = [by_identity[one.fingerprint()] for one in subjects]
    result: dict[str, Any] = {
        "mode": options.mode,
        "checkpoints": [
            {"path": str(path), "loss": loss, **score.as_json()}
            for path, loss, score in zip(paths, losses or [None], found, strict=True)
        ],
    }
    if len(paths) > 1:
        result["correlation"] = correlate([score.overall[score.headline].mean for score in found], losses, options.out)
    if not options.json:
        print_scores(made)
    return result


def _say(console: Console, path: Path, progress: Progress) -> None:
    console.print(f"{path}  {progress.done}/{progress.total}  {progress.unit.task}")


def correlate(values: Sequence[float], losses: Sequence[float], out: Path) -> dict[str, Any]:
    """Rank correlation of MAD scores with losses, what it is worth, and its plot."""
    try:
        found: Fit = fit("proxy", Runs.of("checkpoints", score=values, loss=losses))
    except UserError as error:
        told: dict[str, Any] = {"verdict": [f"No correlation: {error}"], "parameters": None, "intervals": None}
    else:
        told = {key: found.to_json()[key] for key in ("verdict", "parameters", "intervals", "warnings")}
        (image,) = draw(found.curves).values()
        (out / "correlation.png").write_bytes(image)
    (out / "correlation.json").write_text(json.dumps(told, indent=2, allow_nan=False) + "\n")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 done, 1 a process died, 2 bad input."""
    for module in ("megatron", "torch"):  # notes of libraries to their developers
        warnings.filterwarnings("ignore", module=module)
    try:
        options = parser().parse_args(arguments)
        require_counts(options)
        chosen = preset(options.preset, max_steps=options.steps, batch_size=options.batch_size)
        result = rerun(options, chosen, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))
    except UserError as error:
        print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2
    except SuiteFailed as error:
        print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        print(
            "\n".join([*result.get("correlation", {}).get("verdict", []), str(options.out / "report" / "report.html")])
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
