"""A run on disk: config, metrics and checkpoints, and how each survives a kill at any moment.

    config.yaml   environment.json  metrics.jsonl   changes.jsonl  tensorboard/  loss.png
    summary.json  step_00000100/    latest          abandoned/      damaged/        attempts.jsonl    profile/
    fp8.jsonl     fp8.png (with precision.format fp8)
    layer_statistics.jsonl   layer_statistics.png (with train.layer_statistics_every)

A checkpoint is written into `step_N.partial-*`, renamed when whole, and only then named by `latest`, which is replaced
atomically: whatever `latest` names is complete. A run that goes on from an older checkpoint moves those beyond it into
abandoned/; to use one again, move it back and write its name into `latest`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybridtron.config import yaml_text
from hybridtron.config.load import build, dump
from hybridtron.data.tokenizers.hugging_face import CONFIG_NAME, FILE_NAME
from hybridtron.errors import DamagedCheckpoint, UserError
from hybridtron.files import (
    is_number,
    lock,
    open_to_write,
    read_object,
    read_plain,
    remove_folder,
    replace_file,
    require_folder,
    require_plain,
    sync_folder,
)
from hybridtron.training.config import RunConfig
from hybridtron.training.run_folder.missing import missing_run
from hybridtron.training.run_folder.train_state import NAME, STATE_NAME, TrainState, read_state

logger = logging.getLogger(__name__)

PARTIAL = ".partial"
LOCK = ".lock"
LOOK_SECONDS = 0.2  # for which a process that looks whether a run is locked may hold its lock, at most
FILES = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "changes.jsonl",
    "attempts.jsonl",
    "loss.png",
    "fp8.jsonl",
    "fp8.png",
    "layer_statistics.jsonl",
    "layer_statistics.png",
    "summary.json",
    "latest",
    FILE_NAME,
    CONFIG_NAME,
    LOCK,
)
FOLDERS = ("tensorboard", "profile", "wandb", "abandoned", "damaged")
LAUNCHER = ("launch", "logs", "code")  # folders that `hybridtron launch` makes before training
LOSSES = ("loss", "valid_loss", "ema_valid_loss", "valid_bits_per_byte", "bigram_bits_per_byte")
NUMBERS = ("step", *LOSSES)  # of summary.json
BITS_UNKNOWN = ("bits_per_byte", None)
OF_SOURCES = {"train_sources": ("samples", "epochs"), "valid_sources": ("loss", "bits_per_byte")}  # numbers of each


@dataclass
class RunFolder:
    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def plot_file(self) -> Path:
        return self.path / "loss.png"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def abandoned(self) -> Path:
        return self.path / "abandoned"

    def require_unused(self) -> None:
        """Raise UserError where the folder holds anything but a lock and what a launcher has prepared."""
        if self.path.exists() and (
            not self.path.is_dir() or any(p.name not in (LOCK, *LAUNCHER) for p in self.path.iterdir())
        ):
            raise UserError(
                f"run folder {self.path} exists: expected a new one; continue it with resume=True, or give another name"
            )

    def require_makeable(self) -> None:
        """Raise UserError where the folder cannot be made or written to."""
        try:
            there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        except (OSError, ValueError) as error:
            raise UserError(f"run folder {str(self.path)!r}: cannot be made: {error}") from None
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(f"run folder {self.path}: cannot be made: {there} is no folder that can be written to")

    def require_plain(self) -> None:
        """Raise UserError where a link, a device or a pipe is in the place of what a run writes into its folder."""
        for name in FOLDERS:
            require_folder(self.path / name)
        for name in (*FILES, *(f"{name}.new" for name in FILES)):
            require_plain(self.path / name)

    def lock(self) -> bool:
        """Make the folder and lock it until `unlock`; return False where another process has it.

        Raises UserError where the folder cannot be made or written to.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_file = open_to_write(self.path / LOCK)
        except OSError as error:
            raise UserError(f"run folder {self.path}: cannot be made: {error.strerror}") from None
        try:
            deadline = time.monotonic() + LOOK_SECONDS
            while not lock(self._lock_file):
                if time.monotonic() > deadline:
                    return False
                time.sleep(LOOK_SECONDS / 10)
            return True
        except OSError as error:
            raise UserError(f"run folder {self.path}: cannot be locked: {error.strerror}") from None

    def unlock(self) -> None:
        """Release the lock, if this object has it."""
        if file := self.__dict__.pop("_lock_file", None):
            file.close()

    def set_aside(self, step: int) -> list[Path]:
        """Move the checkpoints beyond a step, from which a run goes on another way, into abandoned/; return them there.

        There they are in the way of nothing: neither `latest`, when it is lost, nor keep_last counts them.
        """
        beyond = [path for path in self.path.glob("step_" + "[0-9]" * 8) if path.name > self.checkpoint(step).name]
        return [_move_into(self.abandoned, path) for path in sorted(beyond)]

    def set_aside_damaged(self, whole: Path, damaged: Iterable[str]) -> list[Path]:
        """Point `latest` at the whole checkpoint and move damaged ones into damaged/; return them there."""
        if self._named_by_latest() not in (None, whole.name):
            replace_file(self.path / "latest", whole.name + "\n")
        present = [self.path / name for name in damaged if os.path.lexists(self.path / name)]
        return [_move_into(self.path / "damaged", path) for path in present]

    def create(self, config: RunConfig, environment: dict[str, Any]) -> None:
        """Write config.yaml and environment.json, and delete partial checkpoints of a killed run."""
        for leftover in self.path.glob(f"step_*{PARTIAL}*"):
            remove_folder(leftover)
        replace_file(self.config_file, dump(config.with_absolute_paths()))
        replace_file(self.environment_file, json.dumps(environment, indent=2) + "\n")

    def read_environment(self) -> dict[str, Any]:
        """Read environment.json; empty where it is missing or damaged."""
        return read_object(self.environment_file)

    def read_summary(self, step: int) -> dict[str, Any]:
        """Read summary.json of a run that ended at this step, without what is no number where one belongs.

        Empty where there is none.
        """
        summary = read_object(self.summary_file)
        sound = {key: value for key, value in summary.items() if _is_sound(key, value)}
        return sound if sound.get("step") == step else {}

    def latest_checkpoint(self) -> Path | None:
        """Return the checkpoint that `latest` names, or without that file the last complete one; None if there is none.

        Raises UserError where `latest` names no complete checkpoint.
        """
        name = self._named_by_latest()
        if name is None:
            return self.checkpoints()[-1] if self.checkpoints() else None
        if not re.fullmatch(NAME, name) or not (self.path / name / STATE_NAME).is_file():
            present = ", ".join(path.name for path in self.checkpoints()) or "none"
            pointer = self.path / "latest"
            raise UserError(
                f"{pointer}: names {name!r}; expected a complete checkpoint beside it (there are: {present})"
            )
        return self.path / name

    def _named_by_latest(self) -> str | None:
        """Return the name that `latest` holds, "" where that is no text; None where there is no such file.

        Raises OSError where the system cannot read it, which says nothing about the checkpoints.
        """
        try:
            return read_plain(self.path / "latest").decode().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except UnicodeDecodeError:
            return ""

    def live_checkpoints(self) -> tuple[list[Path], tuple[str, ...]]:
        """Return the checkpoints from the one that `latest` names backwards, damaged ones too; and what is wrong there.

        All checkpoints count where that file is lost or names none of them.
        """
        every = sorted((path for path in self.path.glob("step_" + "[0-9]" * 8) if path.is_dir()), reverse=True)
        name = self._named_by_latest()
        if name is None:
            return every, ()
        if self.path / name in every:
            return [path for path in every if path.name <= name], ()
        return every, (f"latest: names {name!r}, which is not there",)

    def checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, oldest first."""
        return sorted(p for p in self.path.glob("step_" + "[0-9]" * 8) if (p / STATE_NAME).is_file())

    def partial_checkpoint(self, step: int, attempt: int) -> Path:
        """Return the folder to write into, of each process its own: a writer of a killed run may still be at work."""
        return self.path / f"step_{step:08d}{PARTIAL}-{attempt}"

    def checkpoint(self, step: int) -> Path:
        """Return the folder of the checkpoint of a step."""
        return self.path / f"step_{step:08d}"

    def finish_checkpoint(self, partial: Path, state: TrainState, keep_last: int, keep_every: int = 0) -> Path:
        """Give a written checkpoint its name, point `latest` at it, and delete what is too old.

        Checkpoints at multiples of `keep_every` steps are never too old.
        """
        final = self.checkpoint(state.step)
        if os.path.lexists(final):  # the same step, saved again after a resume
            remove_folder(final)
        os.replace(partial, final)
        sync_folder(self.path)  # the name is on disk before `latest` is
        replace_file(self.path / "latest", final.name + "\n")
        sync_folder(self.path)
        if keep_last:
            for old in self.checkpoints()[:-keep_last]:
                step = int(old.name.removeprefix("step_"))
                if old != final and not (keep_every and step % keep_every == 0):
                    try:
                        remove_folder(old)
                    except OSError as error:
                        logger.warning("%s: cannot be deleted: %s", old, error.strerror)
        return final


def _is_sound(key: str, value: Any) -> bool:
    """Return whether a value of summary.json has the numbers that belong there; bits per byte may be null."""
    if key not in OF_SOURCES:
        return key not in NUMBERS or is_number(value)
    sources = value.values() if isinstance(value, dict) else [None]
    return all(
        isinstance(source, dict)
        and all(is_number(source.get(name)) or (name, source.get(name)) == BITS_UNKNOWN for name in OF_SOURCES[key])
        for source in sources
    )


def _move_into(folder: Path, path: Path) -> Path:
    """Move a checkpoint into a folder, under a new name where its own is taken; return its new path."""
    folder.mkdir(exist_ok=True)
    names = itertools.chain([path.name], (f"{path.name}.{number}" for number in itertools.count(2)))
    moved = next(folder / name for name in names if not os.path.lexists(folder / name))
    os.replace(path, moved)
    return moved


@contextlib.contextmanager
def suggest_older_checkpoint(checkpoint: Path, advice: str) -> Iterator[None]:
    """Add the checkpoint before this one, if there is one, to a DamagedCheckpoint of the block.

    `advice` follows, with {name} of the older one filled in.
    """
    try:
        yield
    except DamagedCheckpoint as error:
        older = [path for path in RunFolder(checkpoint.parent).checkpoints() if path.name < checkpoint.name]
        if not older:
            raise
        advice = advice.replace("{name}", older[-1].name)  # not format: the path of a run may have braces
        raise DamagedCheckpoint(f"{error}; the checkpoint before it is {older[-1]}{advice}") from None


def read_config(folder: Path) -> RunConfig:
    """Read the config of a run folder."""
    file = folder / "config.yaml"
    try:
        return build(yaml_text.read(str(file)), RunConfig)
    except UserError as error:
        raise error if str(file) in str(error) else UserError(f"{file}: {error}") from None


def read_run_config(path: Path) -> tuple[RunConfig, Path]:
    """Read the config of a run folder or of a checkpoint in it, and return it with the run folder as it lies now.

    Raises UserError where there is none.
    """
    if not path.is_dir():
        raise missing_run(path)
    folder = path if (path / "config.yaml").is_file() else path.parent
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{path}: neither a run folder (config.yaml) nor a checkpoint inside one")
    config = read_config(folder).model_copy(update={"folder": str(folder)})
    if (folder / FILE_NAME).is_file():  # a copy of the tokenizer, which moves with the run
        data = config.data.model_copy(update={"tokenizer": str(folder / FILE_NAME)})
        config = config.model_copy(update={"data": data})
    return config, folder


def read_run(path: Path) -> tuple[RunConfig, Path]:
    """Read the config of a run folder or of a checkpoint in it, and return it with the (latest) checkpoint.

    Raises UserError where there is none.
    """
    config, folder = read_run_config(path)
    checkpoint = RunFolder(folder).latest_checkpoint() if folder == path else path
    if checkpoint is None or not (checkpoint / STATE_NAME).is_file():
        raise UserError(f"{path}: holds no complete checkpoint yet")
    with suggest_older_checkpoint(checkpoint, ": give that path instead"):
        read_state(checkpoint)
    return config, checkpoint
