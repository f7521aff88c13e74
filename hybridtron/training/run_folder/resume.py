"""Find where a run starts: at step 0 in a new folder, or at a checkpoint; and check what changes then."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hybridtron.config.flat import flat
from hybridtron.config.type_words import value_text
from hybridtron.data.blend_config import by_source
from hybridtron.errors import UserError
from hybridtron.files import append_rows, open_rows
from hybridtron.initial_weights import WeightRules
from hybridtron.mixers.contract import MixerConfig
from hybridtron.pattern import Pattern
from hybridtron.training.config import RunConfig
from hybridtron.training.lr_schedule import learning_rate
from hybridtron.training.run_folder.folder import RunFolder, read_config, read_run
from hybridtron.training.run_folder.init_map import weight_rules
from hybridtron.training.run_folder.train_state import TrainState, read_state
from hybridtron.training.sections.train import INIT_KEYS

if TYPE_CHECKING:
    from hybridtron.training.corpus import Corpus

# The architecture, the seed and the order of the data stay; of these keys (and all below them) a run may change.
FREE = (
    "train", "optimizer", "schedule", "checkpoint", "parallel", "name", "folder", "grown_from", "model.backend",
    "data.loader",
)  # fmt: skip
FIXED = (
    "train.global_batch_size",
    "train.batch_warmup",
    "train.init_from",
    *(f"train.{key}" for key in INIT_KEYS),
    "optimizer.type",
)  # of these
# Paths may change where what they hold stays the same, and names; of held-out sources also the weights. Stages that
# have begun are compared apart.
TOKENS = re.compile(
    r"data\.(tokenizer|train|valid|(train|valid)\[\d+]\.(path|name)|valid\[\d+]\.weight|stages\[\d+]\..*)"
)
LARGEST_RISE = 2  # of the learning rate from one step to the next that is not told: that of a warm-up's second step


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the run's so far."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        was, now = (value if isinstance(value, str) else value_text(value) for value in (self.was, self.now))
        return f"{self.key} {was} -> {now}"


@dataclass(frozen=True)
class Start:
    """Step 0, or a checkpoint to continue from, and the keys that change there."""

    checkpoint: Path | None = None
    weights: Path | None = None  # a checkpoint of another run, whose weights a new run begins with
    rules: WeightRules | None = None  # by which the parameters of both are matched
    initial: Mapping[str, Any] = field(default_factory=dict)  # what environment.json says of them
    state: TrainState = field(default_factory=TrainState)
    changes: tuple[Change, ...] = ()
    damaged: Mapping[str, str] = field(default_factory=dict)  # newer checkpoints: name -> error, newest first
    notes: tuple[str, ...] = ()  # why it is not the newest one


def find_start(
    folder: RunFolder, config: RunConfig, resume: bool, damaged: Mapping[str, str] = MappingProxyType({})
) -> Start:
    """Return where the run in the folder starts, and which keys change there: at the newest whole checkpoint.

    `damaged` are checkpoints that could not be loaded, name -> error. Raises UserError when the folder exists and
    `resume` is false, cannot be written to, holds no whole checkpoint, or holds a run that differs in what may not
    change, or that is past the config's last step.
    """
    folder.require_makeable()
    if not resume or not folder.config_file.is_file():
        folder.require_unused()
        return _from_weights(Start(), config)
    folder.require_plain()
    before = read_config(folder.path)
    _require_same(folder, before, config)
    start = _newest_whole(folder, damaged)
    if start.checkpoint is None:  # it stopped before its first checkpoint
        start = _from_weights(start, config)
    checkpoint, state = start.checkpoint, start.state
    _require_equal(folder, _begun_stages(before, state.step), _begun_stages(config, state.step))
    if state.step > config.train.steps:
        raise UserError(f"train.steps = {config.train.steps}: expected at least {state.step}, as {checkpoint} has")
    was, now = _free(before) | _precision(before), _free(config) | _precision(config)
    keys = [*now, *(key for key in was if key not in now)]
    changes = [Change(key, was.get(key), now.get(key)) for key in keys if was.get(key) != now.get(key)]
    if 0 < state.step < config.train.steps:
        changes += _jump(learning_rate(before, state.step), learning_rate(config, state.step + 1))
    return replace(start, changes=tuple(changes))


def _require_same(folder: RunFolder, before: RunConfig, config: RunConfig) -> None:
    """Raise UserError for a key that differs from the run's and may not change."""
    was, now, way = _fixed(before), _fixed(config), ""
    if before.precision.parameter_format == config.precision.parameter_format:
        way = ", or precision.change_on_resume true beside it"
    if not way or not config.precision.change_on_resume:
        was, now = was | _precision(before), now | _precision(config)
    _require_equal(folder, was, now, way)


def _require_equal(folder: RunFolder, was: Mapping[str, Any], now: Mapping[str, Any], way: str = "") -> None:
    """Raise UserError for the first key that differs; `way` says how a key of precision may change."""
    first = ("precision.format", "data.train")
    for key in sorted(was.keys() | now.keys(), key=lambda key: (key not in first, key)):
        if was.get(key) != now.get(key):
            raise UserError(
                f"{key} = {now.get(key)}: expected {was.get(key)} as in {folder.path}, since a resumed run keeps "
                + (f"it{way}" if way and key.startswith("precision.") else _what_stays(key))
            )


def _what_stays(key: str) -> str:
    """Return what a resumed run keeps, of which a key is a part."""
    return "its optimizer's state" if key.startswith("optimizer.") else "its architecture and its order of data"


def _from_weights(start: Start, config: RunConfig) -> Start:
    """Return the start of a new run with the checkpoint whose weights it begins with, if any.

    Raises UserError where there is none, or where train.init_map does not fit both models.
    """
    if config.train.init_from is None:
        return start
    try:
        source, checkpoint = read_run(Path(config.train.init_from))
    except UserError as error:
        raise type(error)(f"train.init_from: {error}") from None
    return replace(start, weights=checkpoint, rules=weight_rules(config.train, config.model, source.model))


def _newest_whole(folder: RunFolder, known: Mapping[str, str]) -> Start:
    """Return the newest checkpoint of the live branch that is not damaged, without changes of keys."""
    checkpoints, notes = folder.live_checkpoints()
    damaged: dict[str, str] = {}
    for checkpoint in checkpoints:
        error = known.get(checkpoint.name)
        if error is None:
            try:
                return Start(
                    checkpoint,
                    state=read_state(checkpoint),
                    damaged=damaged,
                    notes=(*notes, *damaged.values()),
                )
            except UserError as cause:
                error = str(cause)
        damaged[checkpoint.name] = error.removeprefix(f"{folder.path}/")
    if damaged or notes:
        found = "; ".join([*notes, *damaged.values()])
        raise UserError(f"run folder {folder.path}: no checkpoint is whole: {found}; expected one to continue from")
    return Start()


def _jump(was: float, now: float) -> list[Change]:
    """Return the change of a learning rate that rises on resume, as where a longer run decays later."""
    return [Change("learning rate", float(f"{was:.3g}"), float(f"{now:.3g}"))] if now > LARGEST_RISE * was else []


def require_same_tokens(folder: RunFolder, corpus: Corpus) -> list[Change]:
    """Raise UserError where the training tokens or the tokenizer are not those of the run in the folder.

    Return the change where the held-out tokens differ. Nothing is compared where environment.json is gone.
    """
    recorded = folder.read_environment().get("tokens")
    was = {key: text for key, text in recorded.items() if isinstance(text, str)} if isinstance(recorded, dict) else {}
    now = corpus.fingerprints
    changed = [key for key in now if key in was and now[key] != was[key]]
    for key in changed:
        if not key.startswith("data.valid"):
            what = "tokenizer" if key == "data.tokenizer" else "tokens"
            raise UserError(
                f"{key} = {corpus.sources[key]}: holds other {what} than the run in {folder.path} began with; expected "
                "the same, wherever they lie"
            )
    return [Change(f"tokens of {key}", was[key], now[key]) for key in changed]


def as_recorded(folder: RunFolder, config: RunConfig) -> RunConfig:
    """Return the config recorded in the folder, with layout and train.steps of `config`, to report without training."""
    before = read_config(folder.path)
    train = before.train.model_copy(update={"steps": config.train.steps})
    sections = {name: getattr(before, name) for name in ("data", "optimizer", "schedule", "checkpoint")}
    return config.model_copy(update={**sections, "train": train})


def record_changes(folder: RunFolder, changes: Iterable[Change], step: int) -> None:
    """Append the keys that change from this step on to changes.jsonl."""
    lines = [{"step": step, "key": c.key, "was": c.was, "now": c.now, "time": time.time()} for c in changes]
    if lines:
        stream, _ = open_rows(folder.path / "changes.jsonl")
        with stream:
            append_rows(stream, lines)


def _fixed(config: RunConfig) -> dict[str, Any]:
    """Return the keys that may not change on resume, with their values."""
    model = config.model
    names = model.layer_names
    fixed = {key: value for key, value in _flat(config).items() if not _is_free(key)}
    apart = ("model.blocks.", "model.pattern", "precision.")
    kept = {key: value for key, value in fixed.items() if not key.startswith(apart)}
    kept["data.train"] = _count(max(1, len(config.data.train_sources)), "source")  # compared before the keys of each
    # Cuts into pipeline stages belong to the layout; blocks that no layer uses, and keys of speed, to nothing.
    kept["model.pattern"] = str(Pattern(names))
    for name in sorted(model.used_blocks):
        for key, value in model.blocks[name].model_dump(exclude=set(_speed_keys(model.blocks[name]))).items():
            kept[f"model.blocks.{name}.{key}"] = value
    return kept


def _begun_stages(config: RunConfig, step: int) -> dict[str, Any]:
    """Return the stages of data.stages that have given samples before a step (from 0), by key."""
    number = sum(stage.start_step < step for stage in config.data.stages)
    places = tuple(f"data.stages[{position}]." for position in range(number))
    begun = {key: value for key, value in _flat(config).items() if key.startswith(places)}
    return {"data.stages": f"{_count(number, 'stage')} before step {step}", **begun}


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _precision(config: RunConfig) -> dict[str, Any]:
    """Return the number formats, and with fp8 how values become FP8, by key."""
    precision = config.precision
    names: tuple[str, ...] = ("format", "matmul")
    if precision.format == "fp8":
        names = ("format", "recipe", "first_last_bf16", "skip", "emulate")
    return {f"precision.{name}": getattr(precision, name) for name in names}


def _speed_keys(block: MixerConfig) -> list[str]:
    """Return the keys that change how a block is computed, not what."""
    return sorted(key for key, facts in block.facts().items() if facts.speed_only)


def _free(config: RunConfig) -> dict[str, Any]:
    """Return the keys that may change on resume, with their values."""
    free = {key: value for key, value in _flat(config).items() if _is_free(key) and key not in ("name", "folder")}
    for name in sorted(config.model.used_blocks):
        block = config.model.blocks[name]
        free |= {f"model.blocks.{name}.{key}": getattr(block, key) for key in _speed_keys(block)}
    return free | {"model.pattern": str(config.model.parsed_pattern)}  # its layers are the same: its cuts


def _is_free(key: str) -> bool:
    """Return whether a key outside the blocks may change on resume."""
    fixed, free = (any(f"{key}.".startswith(f"{one}.") for one in keys) for keys in (FIXED, FREE))
    return TOKENS.fullmatch(key) is not None or (free and not fixed)


def _flat(config: RunConfig) -> dict[str, Any]:
    """Return the config as dotted key -> value, with absolute paths of data."""
    mapping = config.with_absolute_paths().model_dump(mode="json", serialize_as_any=True)
    return flat({**mapping, "data": by_source(mapping["data"])})
