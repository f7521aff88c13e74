"""train_state.json: where a run is at a checkpoint."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from hybridtron.config.type_words import value_text
from hybridtron.errors import DamagedCheckpoint, unreadable
from hybridtron.files import read_plain

STATE_NAME = "train_state.json"
NAME = "step_[0-9]{8}"  # of a checkpoint


@dataclass(frozen=True)
class TrainState:
    """Where a run is. Everything else about the data and the schedule follows from it and the config."""

    step: int = 0
    tokens: int = 0
    skipped: int = 0  # steps in all
    skipped_in_a_row: int = 0


def state_content(state: TrainState) -> bytes:
    """Return the content of train_state.json."""
    return json.dumps(asdict(state)).encode() + b"\n"


def read_state(checkpoint: Path) -> TrainState:
    """Read the state of a checkpoint.

    Raises DamagedCheckpoint where its file is damaged or belongs to another step, OSError where the system cannot read
    it, and UserError where it is no plain file.
    """
    file = checkpoint / STATE_NAME
    try:
        content = json.loads(read_plain(file))
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error, getattr(error, "strerror", None) or str(error)) from None
    names = [field.name for field in fields(TrainState)]
    if not isinstance(content, dict) or sorted(content) != sorted(names):
        raise DamagedCheckpoint(f"{file}: damaged: holds {value_text(content)}; expected {', '.join(names)}")
    for name, value in content.items():
        if type(value) is not int or value < 0:
            raise DamagedCheckpoint(
                f"{file}: damaged: {name} = {value_text(value)}; expected a whole number of at least 0"
            )
    state = TrainState(**content)
    if re.fullmatch(NAME, checkpoint.name) and checkpoint.name != f"step_{state.step:08d}":
        raise DamagedCheckpoint(f"{file}: damaged: step = {state.step}; expected that of its folder")
    if not state.skipped_in_a_row <= state.skipped <= state.step:
        raise DamagedCheckpoint(
            f"{file}: damaged: skipped = {state.skipped} of {state.step} steps; expected no more than those"
        )
    return state
