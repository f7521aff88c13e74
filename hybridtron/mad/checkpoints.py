"""Score checkpoints of this project on the MAD tasks, and correlate the scores with their losses on held-out text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from hybridtron.config.load import build
from hybridtron.config.nearest import one_of
from hybridtron.data.datasets.indexed_dataset import fingerprint
from hybridtron.data.preprocessing.report import read_report
from hybridtron.data.tokenizers.tokenizer import load_tokenizer
from hybridtron.errors import UserError
from hybridtron.mad.models.architecture import from_model
from hybridtron.mad.models.candidate import Candidate
from hybridtron.mad.models.finetune import from_trained
from hybridtron.mad.models.iso_state import iso_state as with_iso_state
from hybridtron.mad.models.shrink import DEPTH
from hybridtron.mad.report.write import write_report
from hybridtron.mad.scoring.aggregate import renamed, scores
from hybridtron.mad.scoring.correlation import HeldOutLoss, as_points, correlate, in_one_unit
from hybridtron.mad.scoring.score import Score
from hybridtron.mad.scoring.selection import rows_of_call
from hybridtron.mad.training.presets import Preset
from hybridtron.mad.training.presets import preset as find_preset
from hybridtron.mad.training.suite import Progress, chosen_settings, require_seeds, run_suite
from hybridtron.model.config import ModelConfig
from hybridtron.reporting.publish import require_usable
from hybridtron.training.corpus import open_held_out
from hybridtron.training.evaluate import evaluate_run
from hybridtron.training.process.device import take_device
from hybridtron.training.run_folder.folder import read_run
from hybridtron.training.single_process import load

Mode = Literal["proxy", "finetune", "probe"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class CheckpointScores:
    """Scores of checkpoints, each given once; `losses` and `correlation` are there with two or more."""

    mode: Mode
    paths: list[Path]
    scores: list[Score]  # of each path
    trained: list[Score]  # of each model that was trained, the best first
    losses: list[HeldOutLoss]
    correlation: dict[str, Any] | None

    def as_json(self) -> dict[str, Any]:
        """Return what `tools/rerun_mad.py --json` prints."""
        keys = ("loss", "bits_per_byte", "data", "seq_len")
        losses = [{key: getattr(loss, key) for key in keys} for loss in self.losses]
        losses = losses or [{"loss": None, "bits_per_byte": None}] * len(self.paths)
        checkpoints = [
            {"path": str(path), **loss, **score.as_json()}
            for path, loss, score in zip(self.paths, losses, self.scores, strict=True)
        ]
        found = {"mode": self.mode, "checkpoints": checkpoints}
        return found if self.correlation is None else {**found, "correlation": self.correlation}


def score_checkpoints(
    checkpoints: Sequence[Path],
    out: Path,
    mode: Mode = "proxy",
    preset: str | Preset = "search",
    tasks: Sequence[str] | None = None,
    setting: Mapping[str, int | float] | None = None,
    seeds: int | Sequence[int] = 1,
    depth: int | None = None,
    iso_state: bool = False,
    data: str | None = None,
    sequences: int | None = None,
    processes: int = 1,
    device: str = "cpu",
    on_progress: Callable[[Path, Progress], None] | None = None,
    on_message: Callable[[str], None] = lambda text: None,
) -> CheckpointScores:
    """Train what each checkpoint becomes on the tasks, write a report into `out`, and correlate scores with losses.

    Args:
        checkpoints: run folders, or single checkpoints in them.
        mode: `proxy` rebuilds the architecture at width 128, or the small pattern that it was grown from, and trains it
            from scratch; `finetune` and `probe` keep the trained layers under a fresh embedding and head.
        depth: layers that `proxy` keeps; by default 8, and all of a pattern that was grown.
        iso_state: with `proxy`, change layers so that their states add up to 4,096 elements.
        data: held-out tokens for the losses; by default as each run has them.
        sequences: how many of them; by default as each run has it.
        on_progress: called with a checkpoint's path after each of its settings.
        on_message: called with each warning and notice.

    The other arguments are those of `hybridtron.mad.score`.

    Raises UserError for bad arguments and an `out` that cannot be used, SuiteFailed where a process died.
    """
    chosen, seeds = find_preset(preset), require_seeds(seeds)
    settings = chosen_settings(chosen, tasks, setting or {})
    _require_mode(mode, depth, iso_state)
    require_usable(out / "report")
    unique, notices = _without_repeats(checkpoints, on_message)
    paths = list(unique.values())
    candidates = [_model_of(path, mode, depth, iso_state, on_message) for path in paths]
    losses = [_held_out_loss(path, data, sequences) for path in paths] if len(checkpoints) > 1 else []
    values, unit, refusal = _comparable(losses, on_message) if losses else ([], "", "")
    rows = []
    for path, candidate in zip(paths, candidates, strict=True):
        rows += run_suite(
            candidate, chosen, settings, seeds, out, processes=processes, device=device,
            on_unit=partial(on_progress, path) if on_progress else None,
            on_warning=lambda text: on_message(f"warning: {text}"),
        )  # fmt: skip
    trained = scores(rows_of_call(rows, chosen, settings, seeds))
    write_report(trained, [line for score in trained for line in score.left_out], out / "report")
    found = _score_of_each(candidates, trained, on_message if mode == "proxy" else None)
    if not losses:
        return CheckpointScores(mode, paths, found, trained, losses, None)
    if any(score.settings() != found[0].settings() or score.seeds != found[0].seeds for score in found):
        refusal = refusal or "the scores are over different settings or seeds"
    points, remarks = ([], []) if refusal else as_points(found, list(unique), values)
    correlation = correlate(points, out, unit, [*remarks, *notices], refusal)
    return CheckpointScores(mode, paths, found, trained, losses, correlation)


def _require_mode(mode: str, depth: int | None, iso_state: bool) -> None:
    if mode not in MODES:
        raise UserError(f"mode {mode!r}: expected {one_of(mode, MODES)}")
    for name, given in (("depth", depth is not None), ("iso_state", iso_state)):
        if given and mode != "proxy":
            raise UserError(f"{name}: is for mode proxy; expected none with mode {mode}")


def _without_repeats(paths: Sequence[Path], on_message: Callable[[str], None]) -> tuple[dict[Path, Path], list[str]]:
    """Return the first path of each checkpoint, by the checkpoint, and a notice for every path that repeats one."""
    unique: dict[Path, Path] = {}
    notices = []
    for path in paths:
        checkpoint = read_run(path)[1].resolve()
        if checkpoint not in unique:
            unique[checkpoint] = path
            continue
        first = unique[checkpoint]
        repeated = f"again: the same checkpoint as {first}" if path != first else "twice: the same checkpoint"
        notices.append(f"{path} was given {repeated}, counted once.")
        on_message(notices[-1])
    return unique, notices


def _model_of(
    path: Path, mode: Mode, depth: int | None, iso_state: bool, on_message: Callable[[str], None]
) -> Candidate:
    """Return what is trained for a checkpoint under the mode; of a grown model its small pattern in mode proxy."""
    config, checkpoint = read_run(path)
    if mode == "proxy":
        model, source, most = config.model, config.grown_from, DEPTH if depth is None else depth
        if source:
            model = model.model_copy(update={"pattern": source.pattern})
            model = build(model.model_dump(serialize_as_any=True), ModelConfig)  # renews what is cached
            most = len(source.layers) if depth is None else depth
            on_message(f"{path}: scored as {source.pattern}, which its model was grown from")
        proxy = from_model(config.name, model, most)
        if source:
            proxy = replace(proxy, notes=(f"grown from {source.pattern} ({source.method})", *proxy.notes))
        return with_iso_state(proxy) if iso_state else proxy
    name = f"{checkpoint.parent.name}/{checkpoint.name}"
    trained = load(checkpoint, device=take_device())
    return from_trained(name, config.model, dict(trained.named_parameters()), mode)


def _held_out_loss(path: Path, data: str | None, sequences: int | None) -> HeldOutLoss:
    found = evaluate_run(path, data, sequences)
    config, checkpoint = read_run(path)
    section = config.data.model_copy(update={"valid": data or config.data.valid})
    held_out = open_held_out(config.model_copy(update={"data": section}), sequences).sources
    reports = [report for source in held_out if (report := read_report(source.tokens.prefix))]
    texts = [(report.documents, report.bytes) for report in reports]
    prints = [fingerprint(source.tokens.prefix) for source in held_out]
    shares = [source.share for source in held_out] if len(held_out) > 1 else []
    return HeldOutLoss(
        checkpoint=checkpoint.resolve(),
        loss=found["loss"],
        bits_per_byte=found["bits_per_byte"],
        tokenizer=load_tokenizer(config.data.tokenizer).fingerprint,
        tokens=" ".join(map(str, [*prints, *shares])),
        text=(*itertools.chain(*texts), *shares) if len(reports) == len(held_out) else None,
        seq_len=found["seq_len"],
        documents=config.data.documents,
        data=found["data"],
    )


def _comparable(losses: Sequence[HeldOutLoss], on_message: Callable[[str], None]) -> tuple[list[float], str, str]:
    """Return the losses in one unit, the unit, and why there is none; before hours of training."""
    lengths = sorted({loss.seq_len for loss in losses})
    if len(lengths) > 1:
        on_message(f"warning: losses at contexts of {' and '.join(map(str, lengths))} tokens")
    if len({loss.documents for loss in losses}) > 1:
        on_message("warning: losses with data.documents flow and isolate, which are means over different tokens")
    try:
        return *in_one_unit(losses), ""
    except UserError as error:
        on_message(f"warning: no correlation: {error}")
        return [], "", str(error)


def _score_of_each(
    candidates: Sequence[Candidate], trained: Sequence[Score], on_message: Callable[[str], None] | None
) -> list[Score]:
    """Return one score for each candidate under its own name; `on_message` hears where several are one model."""
    by_identity = {score.identity: score for score in trained}
    found = []
    for candidate in candidates:
        score, notice = renamed(by_identity[candidate.fingerprint()], candidate.name, candidate.notes)
        found.append(score)
        if notice and on_message:
            on_message(notice)
    return found
