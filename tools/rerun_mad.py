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
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from hybridtron.arguments import ArgumentParser
from hybridtron.data.indexed_format import fingerprint
from hybridtron.data.report import read_report
from hybridtron.data.tokenizer import load as load_tokenizer
from hybridtron.errors import UserError
from hybridtron.laws import Fit, Runs, fit
from hybridtron.laws.plots import draw
from hybridtron.mad import (
    DEPTH,
    PRESETS,
    Preset,
    Score,
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
from hybridtron.mad.scoring import called
from hybridtron.mad.selection import of_call
from hybridtron.mad.subject import Subject
from hybridtron.mad.suite import Progress
from hybridtron.reporting.publish import require_usable
from hybridtron.train.corpus import open_held_out
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


@dataclass(frozen=True)
class HeldOutLoss:
    """A checkpoint's loss in nats per token and bits per byte, and on what: `text` is of the bytes, where known."""

    checkpoint: Path
    loss: float
    bits_per_byte: float | None
    tokenizer: str
    tokens: str
    text: tuple[int, int] | None
    seq_len: int
    data: str


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


def in_one_unit(losses: Sequence[HeldOutLoss]) -> tuple[list[float], str]:
    """Values that compare, and their unit: bits per byte where tokenizers differ.

    Raises:
        UserError: where they were not measured on the same text, as far as that is known.
    """
    first = losses[0]
    one_tokenizer = all(loss.tokenizer == first.tokenizer for loss in losses)
    for loss in losses:
        same = loss.tokens == first.tokens if one_tokenizer else loss.text == first.text
        if not one_tokenizer and loss.text is None:
            raise UserError(f"tokenizers differ, and nothing tells how many bytes {loss.data} has; "
                            "expected data of tools/prepare_data.py")  # fmt: skip
        if not same:
            raise UserError(f"{_name(loss.checkpoint)} and {_name(first.checkpoint)} have different held-out data "
                            f"({loss.data}, {first.data}); expected the same, such as by --data")  # fmt: skip
    if one_tokenizer:
        return [loss.loss for loss in losses], "nats per token"
    return [loss.bits_per_byte or 0.0 for loss in losses], "bits per byte"


@dataclass(frozen=True)
class Point:
    """What is trained once, with every checkpoint that it stands for."""

    name: str
    checkpoints: list[str]
    score: float
    loss: float


def as_points(
    found: Sequence[Score], checkpoints: Sequence[Path], losses: Sequence[float]
) -> tuple[list[Point], list[str]]:
    """One point per trained model, with the mean loss of the last checkpoint of each run; what was done, in words."""
    groups: dict[str, list[int]] = {}
    for i, score in enumerate(found):
        groups.setdefault(score.identity, []).append(i)
    points = []
    for group in groups.values():
        last = {checkpoints[i].parent: losses[i] for i in sorted(group, key=lambda i: checkpoints[i].name)}
        score = found[group[0]]
        names = " = ".join(dict.fromkeys(found[i].architecture for i in group))
        paths = [_name(checkpoints[i]) for i in group]
        points.append(Point(names, paths, score.overall[score.headline].mean, fmean(last.values())))
    said = []
    if len(points) < len(found):
        said.append(f"{len(found)} checkpoints are {len(points)} different model{'s' if len(points) > 1 else ''} to "
                    "the tasks: one point each, with the mean loss of the last checkpoint of each run.")  # fmt: skip
    if len({path.parent for path in checkpoints}) < len(points):
        said.append("Checkpoints of one run are not independent of each other; p takes points to be.")
    return points, said


def rerun(options: argparse.Namespace, chosen: Preset, console: Console) -> dict[str, Any]:
    """Train, report, correlate; returns what --json prints."""
    settings = chosen_settings(chosen, options.tasks, changed_settings(options.changes))
    seeds = list(dict.fromkeys(options.seeds))
    device = chosen_device(options.device)
    require_usable(options.out / "report")
    by_checkpoint: dict[Path, Path] = {}
    for path in options.checkpoints:
        same = by_checkpoint.setdefault(read_run(path)[1].resolve(), path)
        if same != path:
            console.print(f"{path}: the same checkpoint as {same}, counted once")
    checkpoints, paths = list(by_checkpoint), list(by_checkpoint.values())
    subjects = [subject(path, options) for path in paths]
    losses = [held_out_loss(path, options) for path in paths] if len(options.checkpoints) > 1 else []
    values: list[float] = []
    unit = refused = ""
    if losses:
        try:
            values, unit = in_one_unit(losses)
        except UserError as error:
            refused = str(error)
            console.print(f"warning: no correlation: {refused}")
        lengths = sorted({loss.seq_len for loss in losses})
        if len(lengths) > 1:
            console.print(f"warning: losses at contexts of {' and '.join(map(str, lengths))} tokens")
    rows = []
    for path, one in zip(paths, subjects, strict=True):
        rows += run_suite(
            one, chosen, settings, seeds, options.out,
            processes=options.nproc or default_processes(device), device=device,
            on_unit=partial(_say, console, path),
            on_warning=lambda text: console.print(f"warning: {text}"),
        )  # fmt: skip
    made = scores(of_call(rows, chosen, settings, seeds))
    write_report(made, [line for score in made for line in score.left_out], options.out / "report")
    by_identity = {score.identity: score for score in made}
    found = []
    for one in subjects:
        score, said = called(by_identity[one.fingerprint()], one.name, one.notes)
        found.append(score)
        if said and options.mode == "proxy":
            console.print(said)
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
        points, told = ([], []) if refused else as_points(found, checkpoints, values)
        result["correlation"] = correlate(points, options.out, unit, told, refused)
    if not options.json:
        print_scores(made)
    return result


def _numbers(loss: HeldOutLoss) -> dict[str, Any]:
    return {"loss": loss.loss, "bits_per_byte": loss.bits_per_byte, "data": loss.data, "seq_len": loss.seq_len}


def _name(checkpoint: Path) -> str:
    return f"{checkpoint.parent.name}/{checkpoint.name}"


def _say(console: Console, path: Path, progress: Progress) -> None:
    console.print(f"{path}  {progress.done}/{progress.total}  {progress.unit.task}")


def correlate(
    points: Sequence[Point], out: Path, unit: str, said: Sequence[str] = (), refused: str = ""
) -> dict[str, Any]:
    """Rank correlation of MAD scores with losses, what it is worth, and its plot; or why there is none."""
    told: dict[str, Any] = {"parameters": None, "intervals": None, "unit": unit or None}
    image = out / "correlation.png"
    image.unlink(missing_ok=True)
    try:
        if refused:
            raise UserError(refused)
        columns = {"score": [point.score for point in points], "loss": [point.loss for point in points]}
        found: Fit = fit("proxy", Runs.of("checkpoints", **columns))
    except UserError as error:
        told["verdict"] = [f"No correlation: {error}", *said]
    else:
        told |= {key: found.to_json()[key] for key in ("verdict", "parameters", "intervals", "warnings")}
        told["verdict"] = [*told["verdict"], *said]
        curves = [replace(curve, x_label="MAD score", y_label=f"loss ({unit})") for curve in found.curves]
        (drawn,) = draw(curves).values()
        image.write_bytes(drawn)
    told["points"] = [asdict(point) for point in points]
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
