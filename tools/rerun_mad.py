"""Score checkpoints of this project on the MAD tasks, and see whether the scores order them as their losses do.

    python tools/rerun_mad.py checkpoints/a checkpoints/b/step_00002000 --out mad_of_checkpoints
    python tools/rerun_mad.py checkpoints/* --mode probe --tasks memorization compression --out probes

proxy rebuilds the architecture at width 128 and trains it from scratch; finetune and probe keep the trained layers
under a fresh embedding and head, all trainable or frozen. DIR gets results.jsonl, a report, and with two or more
checkpoints correlation.json and correlation.png: MAD score against the loss on held-out text, in nats per token, or in
bits per byte where tokenizers differ. What is trained from the same start is one point: with proxy, all checkpoints
whose architectures shrink to the same model.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridtron.cli.arguments import ArgumentParser
from hybridtron.cli.mad import changed_settings
from hybridtron.data.indexed_format import fingerprint
from hybridtron.data.report import read_report
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.errors import UserError
from hybridtron.mad import (
    DEPTH,
    PRESETS,
    Score,
    SuiteFailed,
    chosen_settings,
    from_model,
    from_trained,
    iso_state,
    preset,
    run_suite,
    scores,
)
from hybridtron.mad.models.subject import Subject
from hybridtron.mad.report.write import print_scores, write_report
from hybridtron.mad.scoring.aggregate import renamed
from hybridtron.mad.scoring.correlation import HeldOutLoss, as_points, correlate, in_one_unit
from hybridtron.mad.scoring.selection import rows_of_call
from hybridtron.mad.training.device import best_device, default_processes, require_device
from hybridtron.mad.training.presets import require_at_least_one
from hybridtron.mad.training.suite import Progress, require_seeds
from hybridtron.reporting.publish import require_usable
from hybridtron.training.corpus import open_held_out
from hybridtron.training.evaluate import evaluate_run, trained_model
from hybridtron.training.run_folder.folder import read_run

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
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    add("--tasks", **several, default=[], metavar="TASK", help="by default all six")
    add("--set", **several, default=[], metavar="setting=value", dest="changes", help="one setting of each task alone")
    add("--seeds", **several, type=int, metavar="N", help="of data and fresh weights (0)")
    add("--steps", type=int, metavar="N", dest="max_steps", help="at most so many, in place of the preset's")
    add("--batch-size", type=int, metavar="N", help="in place of the preset's")
    add("--depth", type=int, metavar="N", help=f"layers kept by proxy ({DEPTH})")
    add("--iso-state", action="store_true", help="proxy: change layers so that the state is 4,096 in all")
    add("--data", metavar="PREFIX", help="held-out tokens for the loss; by default each run's data.valid")
    add("--sequences", type=int, metavar="N", help="held-out sequences; by default each run's own number")
    add("--nproc", type=int, metavar="N", dest="processes", help="processes; by default one per core, or one on a GPU")
    add("--device", metavar="D", help="cpu or cuda; by default cuda where there is one")
    add("--json", action="store_true", help="for programs")
    return parser


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with the preset, the device and the `settings` of the tasks that they name.

    Raises:
        UserError: for unknown names, numbers that cannot be, and options that the mode has no use for.
    """
    options = parser().parse_args(arguments)
    options.seeds = require_seeds(options.seeds or [0])
    require_at_least_one(processes=options.processes)
    options.preset = preset(options.preset, max_steps=options.max_steps, batch_size=options.batch_size)
    options.settings = chosen_settings(options.preset, options.tasks, changed_settings(options.changes))
    options.device = options.device or best_device()
    require_device(options.device)
    for option, given in (("--depth", options.depth is not None), ("--iso-state", options.iso_state)):
        if given and options.mode != "proxy":
            raise UserError(f"{option}: is for --mode proxy; expected none with --mode {options.mode}")
    options.depth = DEPTH if options.depth is None else options.depth
    return options


def each_once(paths: Sequence[Path], console: Console) -> tuple[dict[Path, Path], list[str]]:
    """The first path of each checkpoint, by the checkpoint; what was given again, in words."""
    by_checkpoint: dict[Path, Path] = {}
    said = []
    for path in paths:
        checkpoint = read_run(path)[1].resolve()
        if checkpoint not in by_checkpoint:
            by_checkpoint[checkpoint] = path
            continue
        first = by_checkpoint[checkpoint]
        said.append(f"{path} was given again: the same checkpoint as {first}, counted once." if path != first else
                    f"{path} was given twice: the same checkpoint, counted once.")  # fmt: skip
        console.print(said[-1])
    return by_checkpoint, said


def subject(path: Path, options: argparse.Namespace) -> Subject:
    """What a checkpoint becomes under the mode."""
    config, checkpoint = read_run(path)
    if options.mode == "proxy":
        made = from_model(config.name, config.model, options.depth)
        return iso_state(made) if options.iso_state else made
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    with trained_model(path) as (config, _, model, _):
        return from_trained(name, config.model, dict(model.named_parameters()), options.mode)


def held_out_loss(path: Path, options: argparse.Namespace) -> HeldOutLoss:
    found = evaluate_run(path, options.data, options.sequences)
    config, checkpoint = read_run(path)
    section = config.data.model_copy(update={"valid": found["data"]})
    prefix = open_held_out(config.model_copy(update={"data": section}), options.sequences).tokens.prefix
    report = read_report(prefix)
    return HeldOutLoss(
        checkpoint=checkpoint.resolve(),
        loss=found["loss"],
        bits_per_byte=found["bits_per_byte"],
        tokenizer=load_tokenizer(config.data.tokenizer).fingerprint,
        tokens=fingerprint(prefix),
        text=(report.documents, report.bytes) if report else None,
        seq_len=found["seq_len"],
        data=found["data"],
    )


def comparable(losses: Sequence[HeldOutLoss], console: Console) -> tuple[list[float], str, str]:
    """Losses in one unit, the unit, and why there is none; told before hours of training."""
    lengths = sorted({loss.seq_len for loss in losses})
    if len(lengths) > 1:
        console.print(f"warning: losses at contexts of {' and '.join(map(str, lengths))} tokens")
    try:
        return *in_one_unit(losses), ""
    except UserError as error:
        console.print(f"warning: no correlation: {error}")
        return [], "", str(error)


def scored(
    subjects: Mapping[Path, Subject], options: argparse.Namespace, console: Console
) -> tuple[list[Score], list[Score]]:
    """Train and report: the scores of what was trained, the best first, and one for each subject under its name."""
    rows = []
    for path, one in subjects.items():
        rows += run_suite(
            one, options.preset, options.settings, options.seeds, options.out,
            processes=options.processes or default_processes(options.device), device=options.device,
            on_unit=partial(_say, console, path),
            on_warning=lambda text: console.print(f"warning: {text}"),
        )  # fmt: skip
    made = scores(rows_of_call(rows, options.preset, options.settings, options.seeds))
    write_report(made, [line for score in made for line in score.left_out], options.out / "report")
    by_identity = {score.identity: score for score in made}
    found = []
    for one in subjects.values():
        score, said = renamed(by_identity[one.fingerprint()], one.name, one.notes)
        found.append(score)
        if said and options.mode == "proxy":
            console.print(said)
    return made, found


def rerun(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train, report, correlate; returns what --json prints."""
    require_usable(options.out / "report")
    by_checkpoint, again = each_once(options.checkpoints, console)
    paths = list(by_checkpoint.values())
    subjects = {path: subject(path, options) for path in paths}
    losses = [held_out_loss(path, options) for path in paths] if len(options.checkpoints) > 1 else []
    values, unit, refused = comparable(losses, console) if losses else ([], "", "")
    made, found = scored(subjects, options, console)
    numbers = [_numbers(loss) for loss in losses] or [{"loss": None, "bits_per_byte": None} for _ in paths]
    result: dict[str, Any] = {
        "mode": options.mode,
        "checkpoints": [
            {"path": str(path), **of_text, **score.as_json()}
            for path, of_text, score in zip(paths, numbers, found, strict=True)
        ],
    }
    if losses:
        if any(score.settings() != found[0].settings() or score.seeds != found[0].seeds for score in found):
            refused = refused or "the scores are over different settings or seeds"
        points, said = ([], []) if refused else as_points(found, list(by_checkpoint), values)
        result["correlation"] = correlate(points, options.out, unit, [*said, *again], refused)
    if not options.json:
        print_scores(made)
    return result


def _numbers(loss: HeldOutLoss) -> dict[str, Any]:
    return {"loss": loss.loss, "bits_per_byte": loss.bits_per_byte, "data": loss.data, "seq_len": loss.seq_len}


def _say(console: Console, path: Path, progress: Progress) -> None:
    console.print(f"{path}  {progress.done}/{progress.total}  {progress.unit.task}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 a process died, 2 bad input, 130 interrupted."""
    for module in ("megatron", "torch"):  # notes of libraries to their developers
        warnings.filterwarnings("ignore", module=module)
    try:
        return run(parsed(arguments))
    except UserError as error:
        print(f"hybridtron: error: {error}", file=sys.stderr)
        return 2


def run(options: argparse.Namespace) -> int:
    """`rerun` with its result printed, or one line that says why it ended before; the exit code."""
    try:
        result = rerun(options, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))
    except SuiteFailed as error:
        print(f"hybridtron: stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"hybridtron: interrupted; what is done is in {options.out}, the same command goes on", file=sys.stderr)
        return 130
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        verdict = result.get("correlation", {}).get("verdict", [])
        print("\n".join([*verdict, str(options.out / "report" / "report.html")]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
