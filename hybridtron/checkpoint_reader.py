"""Read the parameters of a checkpoint without process groups, megatron-core or code from the checkpoint.

A checkpoint has torch's distributed format, as megatron-core's dist_checkpointing writes it. Parameters of several
packed parts are stored part by part; see `hybridtron.distributed.checkpoint`.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from hybridtron.errors import UserError
from hybridtron.safe_index import read_safe_index
from hybridtron.tensors import TensorSpec

FORMAT = "torch_dist"


def load_parameters(folder: Path, specs: dict[str, TensorSpec]) -> dict[str, Tensor]:
    """Read a model's parameters, whole, on the CPU, in the number formats that they were saved in.

    Args:
        folder: the checkpoint.
        specs: the model's parameters by name, see `hybridtron.model.tensors.model_tensors`.

    Raises:
        UserError: where the folder is no checkpoint, is damaged, or holds other parameters than `specs`.
    """
    index = read_safe_index(folder)
    compare_parameters(folder, index, specs)
    with naming_damage(folder):
        _check_common_files(folder)
        # Bytes entries would be unpickled. Every entry asked for is one of tensors, as compare_parameters has found.
        stored = {key: _empty(key, index) for spec_name, spec in specs.items() for key, _ in stored_as(spec_name, spec)}
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
    with naming_damage(folder):
        stored = {
            key: tuple(entry.size)
            for key, entry in index.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and not key.startswith("optimizer.")
        }
    expected = dict(entry for name, spec in specs.items() for entry in stored_as(name, spec))
    for key in sorted(stored.keys() | expected.keys()):
        if stored.get(key) != expected.get(key):
            raise UserError(
                f"{folder}: parameter {key} is {_shape(stored.get(key))} there; expected "
                f"{_shape(expected.get(key))}, as its config says"
            )


@contextlib.contextmanager
def naming_damage(folder: Path) -> Iterator[None]:
    """Raise what goes wrong in the block as a UserError that calls the checkpoint damaged."""
    try:
        yield
    except UserError:
        raise
    except (Exception, CheckpointException) as error:  # whatever layer found the damage
        cause: BaseException = error
        if isinstance(error, CheckpointException) and error.failures:
            cause = next(iter(error.failures.values()))[0]  # the error of one process
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise UserError(f"{folder}: damaged: {line}") from None


def _check_common_files(folder: Path) -> None:
    """Raise where the format is unknown or the small files beside the tensors cannot be read."""
    found = json.loads((folder / "metadata.json").read_text())["sharded_backend"]
    if found != FORMAT:
        raise UserError(f"{folder}: has format {found!r}; expected {FORMAT!r}")
    torch.load(folder / "common.pt", map_location="cpu", weights_only=True)


def _empty(key: str, index: Metadata) -> Tensor:
    """Return a tensor to read an entry of the index into, which the entry's chunks must fill."""
    entry = index.state_dict_metadata[key]
    assert isinstance(entry, TensorStorageMetadata)
    if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
        raise ValueError(f"the chunks of {key} do not add up to its shape {_shape(tuple(entry.size))}")
    return torch.empty(entry.size, dtype=entry.properties.dtype)


def _shape(shape: tuple[int, ...] | None) -> str:
    """Format a shape for a message."""
    return "absent" if shape is None else " x ".join(map(str, shape))
