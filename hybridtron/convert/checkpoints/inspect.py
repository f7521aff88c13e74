"""What a checkpoint or a safetensors folder holds, without reading its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hybridtron.checkpoint_keys import OPTIMIZER
from hybridtron.convert.formats.checkpoint import CheckpointSource
from hybridtron.convert.formats.opening import open_source
from hybridtron.convert.formats.source import TensorInfo, dtype_name
from hybridtron.files import as_path
from hybridtron.reporting.numbers import byte_size, grouped, plural
from hybridtron.reporting.shown import Shown, show
from hybridtron.reporting.table import Table
from hybridtron.training.run_folder.train_state import STATE_NAME, read_state


@dataclass(frozen=True)
class Inspection(Shown):
    """Tensors of a checkpoint or a safetensors folder.

    `files` hold the tensors: of a checkpoint one for each process that wrote any. `step` and `updates` are None for
    what is no checkpoint of a run.
    """

    folder: Path
    format: str
    files: tuple[str, ...]
    tensors: Mapping[str, TensorInfo]
    step: int | None = None
    updates: int | None = None

    @property
    def parameters(self) -> int:
        return sum(math.prod(info.shape) for name, info in self.tensors.items() if not name.startswith(OPTIMIZER))

    @property
    def has_optimizer(self) -> bool:
        return any(name.startswith(OPTIMIZER) for name in self.tensors)

    @property
    def size_bytes(self) -> int:
        return sum(info.size_bytes for info in self.tensors.values())

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "folder": str(self.folder),
            "format": self.format,
            "step": self.step,
            "updates": self.updates,
            "optimizer": self.has_optimizer,
            "parameters": self.parameters,
            "bytes": self.size_bytes,
            "files": list(self.files),
            "tensors": {
                name: {"shape": list(info.shape), "dtype": dtype_name(info.dtype), "bytes": info.size_bytes}
                for name, info in self.tensors.items()
            },
        }


def inspect(path: str | Path) -> Inspection:
    """Return what a run's latest checkpoint, a checkpoint, or a safetensors folder or file holds.

    Raises UserError where it is none of these, DamagedCheckpoint, OSError.
    """
    path = as_path(path, "path")
    source = open_source(path, verify="none", optimizer=True)
    if not isinstance(source, CheckpointSource):
        return Inspection(path, "safetensors", tuple(source.files), source.tensors)
    step = read_state(source.folder).step if (source.folder / STATE_NAME).is_file() else None
    return Inspection(source.folder, "checkpoint", tuple(source.files), source.tensors, step, source.updates)


@show.register(Inspection)
def _(found: Inspection, console: Console) -> None:
    """Print the table of tensors and a line that sums it up."""
    rows = [
        (name, " x ".join(map(str, info.shape)) or "scalar", dtype_name(info.dtype), byte_size(info.size_bytes))
        for name, info in found.tensors.items()
    ]
    table = Table.from_rows(("tensor", "shape", "dtype", "size"), rows, right=("size",)).to_terminal(console)
    console.print(table.rstrip("\n"), markup=False, soft_wrap=True)
    facts = [
        found.format,
        f"step {found.step}" if found.step is not None else "",
        f"{grouped(found.parameters)} parameters",
        plural(len(found.tensors), "tensor"),
        "with optimizer state" if found.has_optimizer else "without optimizer state",
        f"{byte_size(found.size_bytes)} in {plural(len(found.files), 'file')}",
    ]
    console.print(f"{found.folder}: " + ", ".join(filter(None, facts)), markup=False, soft_wrap=True)
