"""Read the parameters of a checkpoint of megatron-core, box by box."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybridtron.checkpoint_reader import FORMAT
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.errors import UserError, unreadable
from hybridtron.files import read_plain
from hybridtron.safe_index import read_safe_index

TRACKER = "latest_checkpointed_iteration.txt"
RELEASE = "release"
# Beside the parameters, which are tensors, lie the optimizer's state and objects: FP8 scales, random states.
OTHER = ("optimizer.", "chained_", "rng_state", "rerun_state_machine_state", "opt_param_scheduler")


def is_parameter(key: str) -> bool:
    """Return whether a key of the index is that of a model's tensor; those of objects end in /shard_I_N."""
    return not key.startswith(OTHER) and "/shard_" not in key


class MegatronSource(CheckpointSource):
    """The parameters in a torch_dist checkpoint of megatron-core; see `Source`. Nothing else in it is read.

    Raises UserError where the folder is no such checkpoint, or is damaged; OSError where the system cannot read it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._unverified = folder, {}  # megatron-core writes no checksums
        file = folder / "metadata.json"
        try:
            backends: Any = json.loads(read_plain(file)) if file.exists() else {}
            found = {key: backends.get(key) for key in FORMAT}
        except (ValueError, RecursionError, AttributeError) as error:
            raise unreadable(file, error, str(error)) from None
        if backends and found != FORMAT:
            raise UserError(f"{file}: has {found}; expected {FORMAT}, as --ckpt-format torch_dist writes")
        self._take(read_safe_index(folder, is_parameter), is_parameter)


def iteration_folder(folder: Path) -> Path:
    """Return the checkpoint in a folder: itself, or that which Megatron-LM's tracker file names.

    Raises UserError where the tracker names none.
    """
    tracker = folder / TRACKER
    if (folder / ".metadata").exists() or not tracker.exists():
        return folder
    name = read_plain(tracker).decode(errors="replace").strip()
    if name != RELEASE and not name.isdecimal():
        raise UserError(f"{tracker}: holds {name[:40]!r}; expected the number of an iteration, or {RELEASE}")
    return folder / (RELEASE if name == RELEASE else f"iter_{int(name):07d}")
