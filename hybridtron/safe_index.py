"""Read the index of a checkpoint that may come from anyone, and keep torch from running code while tensors are loaded.

torch reads the index of a distributed checkpoint, `.metadata`, with pickle, and unpickles what an entry of the index
calls bytes. Here the index is read by an unpickler that makes records without behaviour; the index that is handed on
is built from what they hold, checked: tensors alone, in files of the checkpoint's own folder.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from hybridtron.errors import UserError, unreadable
from hybridtron.files import read_plain

T = TypeVar("T")

_CHECKPOINT = "torch.distributed.checkpoint"
BYTES = f"{_CHECKPOINT}.metadata", "BytesStorageMetadata"  # an entry of bytes, which may be left out only
RECORDS = {
    f"{_CHECKPOINT}.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    f"{_CHECKPOINT}.planner": {"SavePlan", "TensorWriteData", "WriteItem", "WriteItemType"},
    f"{_CHECKPOINT}.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "builtins": {"getattr"},  # as getattr(Enum, "NAME"), which some versions of Python pickle a member of an enum as
}
VALUES = {"Size": torch.Size} | {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


class _Foreign(Exception):
    pass


class _Record:
    """What the index says of one object."""

    state: Any = None

    def __init__(self, *arguments: object) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


_RECORD_TYPES = {name: type(name, (_Record,), {}) for names in RECORDS.values() for name in names}


class _IndexReader(pickle.Unpickler):
    def __init__(self, content: bytes, allow_bytes: bool) -> None:
        super().__init__(io.BytesIO(content))
        self.allow_bytes = allow_bytes

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in VALUES:
            return VALUES[name]
        if name not in RECORDS.get(module, ()) or ((module, name) == BYTES and not self.allow_bytes):
            raise _Foreign(f"{module}.{name}")
        return _RECORD_TYPES[name]


def read_safe_index(folder: Path, keep: Callable[[str], bool] | None = None) -> Metadata:
    """Read the index of a checkpoint folder, in which every entry is a tensor that lies in a file of the folder.

    With `keep`, entries with other keys are left out, whatever they are.

    Raises UserError for a folder that is no checkpoint, or whose index is damaged, names foreign code, holds anything
    but tensors or names a file outside the folder; OSError where the system cannot read it.
    """
    file = folder / ".metadata"
    if not file.is_file() or not (folder / "metadata.json").is_file():
        raise UserError(f"{folder}: not a checkpoint; expected a folder with metadata.json and .metadata")
    try:
        return _index(_IndexReader(read_plain(file), keep is not None).load(), folder, keep or (lambda key: True))
    except _Foreign as error:
        raise UserError(f"{file}: names {error}; expected the shapes and places of tensors only") from None
    except Exception as error:  # pickle raises almost anything for damaged bytes
        raise unreadable(file, error, str(error)) from None


@contextlib.contextmanager
def loading_tensors_only(folder: Path, keep: Callable[[str], bool] | None = None) -> Iterator[Metadata]:
    """Return the index of a checkpoint; until the block ends, put the loaders that run code out of torch's reach.

    torch.load is weights-only whatever its caller asks for, and torch's checkpoint reader gets this index for that
    which it would unpickle. `keep` and errors are those of `read_safe_index`.
    """
    index = read_safe_index(folder, keep)
    with loading_weights_only(), patch.object(filesystem, "pickle", SimpleNamespace(load=lambda file: index)):
        yield index


class _WeightsOnly:
    """Environment in which torch.load is weights-only, while any thread needs it."""

    FORCED: ClassVar = {"TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "0"}

    def __init__(self) -> None:
        self.lock, self.users = threading.Lock(), 0
        self.environment = patch.dict(os.environ, self.FORCED)

    def __enter__(self) -> None:
        with self.lock:
            if not self.users:
                self.environment.start()
            self.users += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if not self.users:
                self.environment.stop()


_WEIGHTS_ONLY = _WeightsOnly()


def loading_weights_only() -> contextlib.AbstractContextManager[None]:
    """Make torch.load weights-only in the block, whatever its caller and the environment ask for.

    Threads may be in such blocks at once: the environment changes with the first and returns with the last.
    """
    return _WEIGHTS_ONLY


def _index(found: object, folder: Path, keep: Callable[[str], bool]) -> Metadata:
    """Build torch's index from the records of one."""
    fields = _state(found, "Metadata")
    entries = _checked(fields["state_dict_metadata"], dict)
    tensors: dict[str, Any] = {key: _tensor(key, entry) for key, entry in entries.items() if keep(_checked(key, str))}
    places = _checked(fields["storage_data"], dict)
    kept = {key: place for key, place in places.items() if keep(_checked(_state(key, "MetadataIndex")["fqn"], str))}
    return Metadata(tensors, storage_data=dict(_place(key, place, folder) for key, place in kept.items()))


def _tensor(key: str, entry: object) -> TensorStorageMetadata:
    """Build the entry of a tensor, whose chunks must fill it."""
    fields = _state(entry, "TensorStorageMetadata")
    dtype = _checked(_checked(_record(fields["properties"], "TensorProperties").state, tuple)[0], torch.dtype)
    size = _sizes(fields["size"])
    chunks = []
    for chunk in map(_chunk, _checked(fields["chunks"], list)):
        stops = [offset + length for offset, length in zip(chunk.offsets, chunk.sizes, strict=True)]
        if any(stop > length for stop, length in zip(stops, size, strict=True)):
            raise ValueError(f"a chunk of {key} lies outside its shape {shape_text(size)}")
        chunks.append(chunk)
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size):
        raise ValueError(f"the chunks of {key} do not add up to its shape {shape_text(size)}")
    if _overlap([chunk for chunk in chunks if math.prod(chunk.sizes)]):
        raise ValueError(f"chunks of {key} overlap")
    return TensorStorageMetadata(TensorProperties(dtype), size, chunks)


def _overlap(chunks: Sequence[ChunkStorageMetadata]) -> bool:
    """Return whether any two chunks, none of them empty, share an element."""
    starts = np.array([chunk.offsets for chunk in chunks], dtype=np.int64)  # [chunks, axes]
    stops = starts + np.array([chunk.sizes for chunk in chunks], dtype=np.int64)
    return any(
        ((starts[i + 1 :] < stops[i]) & (starts[i] < stops[i + 1 :])).all(-1).any() for i in range(len(chunks) - 1)
    )


def _chunk(chunk: object) -> ChunkStorageMetadata:
    fields = _state(chunk, "ChunkStorageMetadata")
    return ChunkStorageMetadata(_sizes(fields["offsets"]), _sizes(fields["sizes"]))


def _place(key: object, place: object, folder: Path) -> tuple[MetadataIndex, _StorageInfo]:
    """Build the entry of a chunk's place: bytes of a plain file that lies in the folder itself."""
    of, fields = _state(key, "MetadataIndex"), _state(place, "_StorageInfo")
    name, start, length = fields["relative_path"], fields["offset"], fields["length"]
    file = folder / _checked(name, str)
    if Path(name).name != name or file.resolve().parent != folder.resolve() or not file.is_file():
        raise ValueError(f"names {name!r}; expected a file in its own folder")
    if min(_checked(start, int), _checked(length, int)) < 0 or start + length > file.stat().st_size:
        raise ValueError(f"places {of['fqn']} beyond the end of {name}")
    if fields.get("transform_descriptors"):
        raise ValueError(f"{name} is compressed; expected plain tensors")
    offset = None if of["offset"] is None else _sizes(of["offset"])
    number = of.get("index")
    index = MetadataIndex(_checked(of["fqn"], str), offset, number if number is None else _checked(number, int))
    return index, _StorageInfo(name, start, length)


def _record(found: object, name: str) -> _Record:
    if not isinstance(found, _Record) or type(found) is not _RECORD_TYPES[name]:
        raise ValueError(f"holds {type(found).__name__}; expected {name}")
    return found


def _state(found: object, name: str) -> dict[str, Any]:
    return _checked(_record(found, name).state, dict)


def _checked(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"holds {type(value).__name__}; expected {kind.__name__}")
    return value


def _sizes(value: object) -> torch.Size:
    sizes = _checked(value, torch.Size)
    if any(size < 0 for size in sizes):
        raise ValueError(f"holds the shape {shape_text(sizes)}; expected no negative size")
    return sizes


def shape_text(shape: tuple[int, ...]) -> str:
    """Format a shape for a message."""
    return " x ".join(map(str, shape))
