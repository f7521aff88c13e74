"""Read the index of a checkpoint that may come from anyone, without running code from it.

The tensors of a distributed checkpoint are read weights-only, but torch reads its index, `.metadata`, with pickle. Here
it is read first, by an unpickler that knows nothing except what such an index is made of.
"""

from __future__ import annotations

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

import torch

from hybridtron.errors import UserError

_CHECKPOINT = "torch.distributed.checkpoint"
KNOWN = {
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
    "torch": {"Size", *(name for name, value in vars(torch).items() if isinstance(value, torch.dtype))},
    "collections": {"OrderedDict"},
}


class _Foreign(Exception):
    pass


def _member(kind: Any, name: Any) -> Any:
    """Return an enum's member, for the getattr(Enum, "NAME") that some versions of Python pickle it as."""
    if not (isinstance(kind, type) and issubclass(kind, Enum)):
        raise _Foreign("builtins.getattr")
    return kind[name]


class _IndexReader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if name not in KNOWN.get(module, ()):
            raise _Foreign(f"{module}.{name}")
        return super().find_class(module, name)


def read_safe_index(folder: Path) -> Any:
    """Read the index of a checkpoint folder: torch's `Metadata`, where the checkpoint is one of ours.

    Raises UserError for a folder that is no checkpoint, or whose index is damaged or names foreign code.
    """
    index = folder / ".metadata"
    if not index.is_file() or not (folder / "metadata.json").is_file():
        raise UserError(f"{folder}: not a checkpoint; expected a folder with metadata.json and .metadata")
    try:
        return _IndexReader(io.BytesIO(index.read_bytes())).load()
    except _Foreign as error:
        raise UserError(f"{index}: names {error}; expected the shapes and places of tensors only") from None
    except Exception as error:  # pickle raises almost anything for damaged bytes
        raise UserError(f"{index}: damaged: {error}") from None
