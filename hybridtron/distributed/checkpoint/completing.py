"""The small files that complete a checkpoint, once the files of all processes are written."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlan

from hybridtron.checkpoint_reader import FORMAT
from hybridtron.distributed.checkpoint import manifest
from hybridtron.distributed.checkpoint.layout import file_name
from hybridtron.files import replace_file, sync_folder


def complete(
    folder: Path,
    index: bytes,
    plans: Sequence[SavePlan],
    checksums: Sequence[Sequence[int]],
    updates: int,
    extra: Mapping[str, bytes] | None = None,
    fp8: Mapping[str, Any] | None = None,
) -> None:
    """Write the index, the small files, those of `extra` by name, and last the manifest. Raises OSError.

    Args:
        folder: holds the files of all processes.
        index: content of `.metadata`, see `index_of`.
        plans: what each process wrote.
        checksums: of each process's chunks, in order.
        updates: number of updates that Adam has made.
        extra: content of further small files, by name.
        fp8: state of FP8 linears, see `hybridtron.ops.fp8.state`.
    """
    common = io.BytesIO()
    torch.save({"optimizer_updates": updates} | ({"fp8": fp8} if fp8 else {}), common)
    versions = {f"{kind}_version": 1 for kind in ("sharded_backend", "common_backend")}
    small = {
        "common.pt": common.getvalue(),
        manifest.FORMATS: json.dumps({**FORMAT, **versions, "manifest": manifest.NAME}).encode(),
        ".metadata": index,
        **(extra or {}),
    }
    files = {name: manifest.file_of_bytes(content) for name, content in small.items()}
    for name, content in small.items():
        replace_file(folder / name, content)
    for rank, (plan, own) in enumerate(zip(plans, checksums, strict=True)):
        if plan.items:
            files[file_name(rank)] = manifest.file_of_tensors(_stored(plan, own))
    manifest.write(folder, files)
    sync_folder(folder)


def _stored(plan: SavePlan, checksums: Sequence[int]) -> list[manifest.StoredTensor]:
    """Return what the manifest says of the chunks of one process."""
    return [
        manifest.StoredTensor(item.index.fqn, tuple(item.index.offset or ()), start, stop - start, crc)
        for item, (start, _, stop), crc in zip(plan.items, plan.storage_data, checksums, strict=True)
    ]
