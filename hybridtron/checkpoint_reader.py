"""Read the parameters of a checkpoint without process groups, megatron-core or code from the checkpoint.

A checkpoint has torch's distributed format, as `torch.distributed.checkpoint` writes it. Parameters of several
packed parts are stored part by part; see `hybridtron.distributed.checkpoint`.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from hybridtron.checkpoint_keys import OPTIMIZER
from hybridtron.distributed.checkpoint import manifest
from hybridtron.distributed.checkpoint.manifest import Verify
from hybridtron.errors import UserError, unreadable
from hybridtron.files import read_plain
from hybridtron.safe_index import loading_tensors_only, shape_text
from hybridtron.tensors import TensorSpec

FORMAT = {"sharded_backend": "torch_dist", "common_backend": "torch"}


def load_parameters(folder: Path, specs: dict[str, TensorSpec], verify: Verify = "full") -> dict[str, Tensor]:
    """Read a model's parameters, whole, on the CPU, in the number formats that they were saved in.

    Args:
        folder: the checkpoint.
        specs: the model's parameters by name, see `hybridtron.model.tensors.model_tensors`.
        verify: how much of the checkpoint is compared with its checksums first.

    Raises:
        UserError: where the folder is no checkpoint, is damaged, or holds other parameters than `specs`.
        OSError: where the system cannot read it, or has no memory for it.
    """
    manifest.verify(folder, verify)
    with loading(folder) as index:
        compare_parameters(folder, index, specs)
        stored = {key: torch.empty(entry.size, dtype=entry.properties.dtype) for key, entry in _parameters(index)}
        planner, reader = DefaultLoadPlanner(), FileSystemReader(folder)
        planner.set_up_planner(stored, index, is_coordinator=True)
        reader.set_up_storage_reader(index, is_coordinator=True)
        reader.read_data(planner.create_local_plan(), planner).wait()
    parameters = {}
    for name, spec in specs.items():
        parts = [stored.pop(key) for key, _ in stored_as(name, spec)]
        parameters[name] = torch.cat(parts, spec.axis) if len(parts) > 1 else parts[0]
    return parameters


def stored_as(name: str, spec: TensorSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Return the key and shape of each tensor that a checkpoint stores for a parameter: one for each packed part."""
    if len(spec.parts) <= 1:
        return [(name, spec.shape)]
    before, after = spec.shape[: spec.axis], spec.shape[spec.axis + 1 :]
    return [(f"{name}.{part.name}", (*before, part.size, *after)) for part in spec.parts]


def compare_parameters(folder: Path, index: Metadata, specs: dict[str, TensorSpec]) -> None:
    """Raise UserError where the tensors of a checkpoint's index are not those declared, by name and whole shape."""
    stored, expected = stored_shapes(index), expected_shapes(specs)
    for key in sorted(stored.keys() | expected.keys()):
        if stored.get(key) != expected.get(key):
            raise UserError(
                f"{folder}: parameter {key} is {_shape(stored.get(key))} there; expected "
                f"{_shape(expected.get(key))}, as its config says"
            )


def stored_shapes(index: Metadata) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of an index that is not the optimizer's, by key."""
    return {key: tuple(entry.size) for key, entry in _parameters(index)}


def expected_shapes(specs: dict[str, TensorSpec]) -> dict[str, tuple[int, ...]]:
    """Return key and shape of each tensor that a checkpoint stores for these parameters."""
    return dict(entry for name, spec in specs.items() for entry in stored_as(name, spec))


def _parameters(index: Metadata) -> list[tuple[str, TensorStorageMetadata]]:
    """Return the tensors of an index that are not the optimizer's, by key."""
    return [
        (key, entry)
        for key, entry in index.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith(OPTIMIZER)
    ]


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[Metadata]:
    """Return the index of a checkpoint of ours; in the block no loader of torch can run code.

    What goes wrong in the block is raised as DamagedCheckpoint, or as OSError where the system failed.
    """
    try:
        with loading_tensors_only(folder) as index:
            _check_common_files(folder)
            yield index
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # whatever layer found it
        raise unreadable(folder, error) from None


def _check_common_files(folder: Path) -> None:
    """Raise where the format is unknown or the small files beside the tensors cannot be read."""
    backends = json.loads(read_plain(folder / "metadata.json"))
    for key, expected in FORMAT.items():
        if backends[key] != expected:
            raise UserError(f"{folder}: has format {backends[key]!r}; expected {expected!r}")
    read_common(folder)


def read_common(folder: Path) -> dict[str, Any]:
    """Read the values of a checkpoint that are no tensors. Raises ValueError for anything but a mapping."""
    content = read_plain(folder / "common.pt")
    common = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(common, dict):
        raise ValueError(f"common.pt holds {type(common).__name__}; expected a mapping")
    return common


def _shape(shape: tuple[int, ...] | None) -> str:
    """Format a shape for a message."""
    return "absent" if shape is None else shape_text(shape)
