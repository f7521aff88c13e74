"""One run to compare, read from its folder, at any state of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybridtron.accounting.describe import describe
from hybridtron.errors import UserError
from hybridtron.files import is_number
from hybridtron.monitoring.compare.noise import noise_of
from hybridtron.monitoring.compare.settings import settings_of
from hybridtron.monitoring.runs import read_raw_config, read_status
from hybridtron.training.callbacks.metrics import read_metrics
from hybridtron.training.run_folder.folder import RunFolder, read_config

if TYPE_CHECKING:
    from hybridtron.training.config import RunConfig

AXES = {"tokens": "tokens", "steps": "steps", "flops": "FLOPs", "hours": "hours"}
MOST_POINTS = 1000  # of a curve
SMOOTHED = 40  # a running mean takes one of so many parts of a curve's rows
Curve = dict[str, list[float]]  # each of AXES, and `loss`


@dataclass
class ComparedRun:
    """A run; what is not known of it is None. Losses are nats per token, speed that of all processes together."""

    name: str
    folder: Path
    state: str
    step: int | None
    steps: int | None
    notes: list[str]
    settings: dict[str, Any]
    blocks: dict[str, dict[str, Any]]
    fingerprints: dict[str, Any]  # of what data.train, data.valid and data.tokenizer hold
    parameters: int | None = None
    active: int | None = None
    flops_per_token: float | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, with `seconds` of training so far

    @property
    def tokens(self) -> int | None:
        """Return the tokens trained so far."""
        return next((row["tokens"] for row in reversed(self.rows) if is_number(row.get("tokens"))), None)

    @property
    def flops(self) -> float | None:
        """Return the FLOPs of training so far."""
        return None if None in (self.tokens, self.flops_per_token) else self.tokens * self.flops_per_token  # type: ignore[operator]

    @property
    def seconds(self) -> float | None:
        """Return the seconds of training steps so far, without evaluations and saves."""
        return (self.rows[-1]["seconds"] or None) if self.rows else None

    @property
    def tokens_per_s(self) -> float | None:
        """Return the mean speed of training steps."""
        return self.tokens / self.seconds if self.tokens and self.seconds else None

    @property
    def train_loss(self) -> float | None:
        """Return the last logged training loss, a mean over the steps since the row before."""
        losses = self.training["loss"]
        return losses[-1] if losses else None

    @property
    def valid_loss(self) -> float | None:
        """Return the last held-out loss."""
        return self.held_out["loss"][-1] if self.held_out["loss"] else None

    @property
    def valid_noise(self) -> float | None:
        """Return how much the last held-out losses scatter; see noise.py."""
        return noise_of(self.held_out["tokens"], self.held_out["loss"])

    @property
    def ema_valid_loss(self) -> float | None:
        """Return the last held-out loss of the average of weights, where the run keeps one."""
        return next(
            (row["ema_valid_loss"] for row in reversed(self.rows) if is_number(row.get("ema_valid_loss"))), None
        )

    @property
    def valid_by_source(self) -> dict[str, float]:
        """Return the last held-out loss of each of several sources; empty for one source."""
        rows = [row for row in self.rows if row.get("valid_loss") is not None]
        keys = {key: key.partition("/")[2] for key in (rows[-1] if rows else {}) if key.startswith("valid_loss/")}
        return {source: rows[-1][key] for key, source in keys.items() if is_number(rows[-1][key])}

    @property
    def bits_per_nat(self) -> float | None:
        """Return bits per byte of a loss of one nat per token, which depends on the tokenizer and the held-out text."""
        for row in reversed(self.rows):
            if row.get("valid_bits_per_byte") and row.get("valid_loss"):
                return float(row["valid_bits_per_byte"] / row["valid_loss"])
        return None

    @property
    def bits_per_byte(self) -> float | None:
        """Return bits per byte of the last held-out loss."""
        return None if None in (self.valid_loss, self.bits_per_nat) else self.valid_loss * self.bits_per_nat  # type: ignore[operator]

    @cached_property
    def training(self) -> Curve:
        """Return the training loss of every logged step."""
        return self._curve("loss")

    @cached_property
    def held_out(self) -> Curve:
        """Return the held-out loss of every evaluation."""
        return self._curve("valid_loss")

    @cached_property
    def smoothed(self) -> Curve:
        """Return the training loss as a centred running mean over 1/SMOOTHED of its rows, at MOST_POINTS at most."""
        return smooth(self.training)

    def _curve(self, key: str) -> Curve:
        """Return the rows that have a number under this key."""
        rows = [row for row in self.rows if is_number(row.get(key)) and is_number(row.get("tokens"))]
        per_token = math.nan if self.flops_per_token is None else self.flops_per_token
        return {
            "tokens": [row["tokens"] for row in rows],
            "steps": [row["step"] for row in rows],
            "flops": [row["tokens"] * per_token for row in rows],
            "hours": [row["seconds"] / 3600 for row in rows],
            "loss": [row[key] for row in rows],
        }

    def as_json(self) -> dict[str, Any]:
        """Return the run for programs, with its curves."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "state": self.state,
            "step": self.step,
            "steps": self.steps,
            "parameters": {"total": self.parameters, "active": self.active},
            "tokens": self.tokens,
            "flops": self.flops,
            "hours": None if self.seconds is None else self.seconds / 3600,
            "tokens_per_s": self.tokens_per_s,
            "train_loss": self.train_loss,
            "valid_loss": self.valid_loss,
            "ema_valid_loss": self.ema_valid_loss,
            "valid_loss_by_source": self.valid_by_source,
            "valid_loss_noise": self.valid_noise,
            "valid_bits_per_byte": self.bits_per_byte,
            "notes": self.notes,
            "curves": {"train_loss_smoothed": self.smoothed, "valid_loss": self.held_out},
        }


def read_run(folder: Path, jobs: Mapping[str, str] | None) -> ComparedRun:
    """Read a run folder; what cannot be read is noted and left out. `jobs` are those of SLURM's queue."""
    status = read_status(folder, folder.name, jobs)
    environment = RunFolder(folder).read_environment()
    config, raw = _read_configs(folder)
    blocks = {} if config is None else _used_blocks(config)
    tokens = environment.get("tokens")
    run = ComparedRun(
        name=str(raw.get("name") or folder.name),
        folder=folder,
        state=status.state,
        step=status.step,
        steps=status.steps,
        notes=[note for note in status.notes if not note.startswith("checkpoint.save_every")],
        settings=settings_of(raw, environment, blocks or None),
        blocks=blocks,
        fingerprints=tokens if isinstance(tokens, dict) else {},
    )
    if config is not None and config.model.vocab_size:
        account = describe(config.model, config.data.seq_len)
        run.parameters, run.active = account.total, account.active
        run.flops_per_token = account.flops_training / config.data.seq_len
    run.rows = _with_seconds(_read_rows(folder, run.notes))
    return run


def smooth(curve: Curve) -> Curve:
    """Return a curve as a centred running mean over 1/SMOOTHED of its points, at MOST_POINTS of them at most."""
    import numpy as np

    losses = np.asarray(curve["loss"], float)
    count = len(losses)
    reach = max(0, count // SMOOTHED // 2)
    sums = np.concatenate([[0.0], np.cumsum(losses)])
    every = max(1, -(-count // MOST_POINTS))
    at = [*range(0, count, every)] + ([count - 1] if count and (count - 1) % every else [])
    # Near an end the mean reaches equally far to both sides, so that it does not lag behind a falling loss.
    reaches = [min(reach, i, count - 1 - i) for i in at]
    means = [float((sums[i + r + 1] - sums[i - r]) / (2 * r + 1)) for i, r in zip(at, reaches, strict=True)]
    return {key: [values[i] for i in at] for key, values in curve.items()} | {"loss": means}


def _read_configs(folder: Path) -> tuple[RunConfig | None, dict[str, Any]]:
    """Return the config of a run, None where it is not whole, and its keys with their values."""
    try:
        config = read_config(folder)
    except (OSError, UserError):
        return None, read_raw_config(folder, [])  # read_status notes what is wrong
    return config, config.with_absolute_paths().model_dump(mode="json", serialize_as_any=True)


def _used_blocks(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return the blocks that layers use: type, and the keys that are not at their default."""
    blocks = {name: config.model.blocks[name] for name in config.model.used_blocks}
    dumped = {
        name: block.model_dump(mode="json", serialize_as_any=True, exclude_defaults=True)
        for name, block in blocks.items()
    }
    return {name: {"type": blocks[name].type, **values} for name, values in dumped.items()}


def _read_rows(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Read metrics.jsonl, empty where there is none yet."""
    try:
        return read_metrics(RunFolder(folder).metrics_file)
    except (OSError, UserError):  # which read_status has noted
        notes.append("no metrics can be read")
        return []


def _with_seconds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row the seconds of training steps up to it, from tokens and the speed since the row before."""
    seconds, tokens, found = 0.0, 0.0, []
    for row in rows:
        rate, now = row.get("tokens_per_s"), row.get("tokens")
        if is_number(rate) and is_number(now) and rate > 0 and now > tokens:
            seconds, tokens = seconds + (now - tokens) / rate, now
        found.append({**row, "seconds": seconds})
    return found
