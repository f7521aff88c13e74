"""Write a checkpoint that megatron-core's `dist_checkpointing.load` reads."""

from __future__ import annotations

import argparse
import io
import json
import math
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from hybridtron.checkpoint_reader import FORMAT
from hybridtron.convert.formats.checkpoint import CheckpointSink
from hybridtron.convert.formats.source import TensorInfo
from hybridtron.convert.megatron.table import FINAL_NORMS, LAYERS, Naming, Placed
from hybridtron.distributed.checkpoint.layout import index_of
from hybridtron.model.config import ModelConfig

OBJECTS = "objects.distcp"  # the file of the objects
CHECKPOINT_VERSION = 3.0  # Megatron-LM's, of the order of rows in linear_qkv
# Modules that have an object beside their tensors, `_extra_state`: FP8 scales, of which there are none here.
STATEFUL = ("linear_qkv", "linear_proj", "linear_fc1", "linear_fc2", "in_proj", "out_proj", "output_layer")


class MegatronSink(CheckpointSink):
    """A checkpoint of megatron-core that is being written; see `Sink`.

    Args:
        folder: to make.
        tensors: every tensor, by its key.
        objects: keys of the objects, all of them None.
        common: content of common.pt.
        progress: called with the number of bytes of tensors written so far.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        objects: Iterable[str],
        common: Mapping[str, Any],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.objects = list(objects)
        backends = {**FORMAT, **{f"{kind}_version": 1 for kind in ("sharded_backend", "common_backend")}}
        extra = {"common.pt": _saved(dict(common)), "metadata.json": json.dumps(backends).encode()}
        super().__init__(folder, tensors, extra | {OBJECTS: _saved([None])}, progress=progress)

    def _index(self, plans: Sequence[SavePlan]) -> bytes:
        """Return the index of the tensors, with the objects added, which all are the same bytes."""
        index = pickle.loads(index_of(plans))  # made a moment ago
        length = len(self.extra[OBJECTS])
        for key in self.objects:
            index.state_dict_metadata[key] = BytesStorageMetadata()
            index.storage_data[MetadataIndex(key)] = _StorageInfo(OBJECTS, 0, length)
        return pickle.dumps(index)


def common_state(arguments: Mapping[str, Any], naming: Naming) -> dict[str, Any]:
    """Return what Megatron-LM finds in common.pt: its arguments, and how the tensors are arranged."""
    content = {"singleton_local_shards": naming.singletons, "non_homogeneous_layers": not naming.stacked}
    return {
        "args": argparse.Namespace(**arguments),
        "checkpoint_version": CHECKPOINT_VERSION,
        "iteration": 0,
        "content_metadata": content,
    }


def object_keys(model: ModelConfig, placed: Iterable[Placed], naming: Naming) -> list[str]:
    """Return the keys of the objects that megatron-core asks for beside the tensors of these entries."""
    layers = len(model.layer_names) // 2
    axes: dict[str, tuple[int, ...]] = {"output_layer": (), FINAL_NORMS[naming.kind].removesuffix(".weight"): ()}
    for each in placed:
        module, _, _ = each.entry.name.partition(".weight")
        outer = (layers,) if each.layer is not None else ()
        if module.endswith("self_attention.linear_qkv"):
            axes[module.replace("linear_qkv", "core_attention")] = outer
        if module.endswith((*STATEFUL, "pre_mlp_layernorm")) and module.startswith(LAYERS):
            is_grouped = ".experts.experts.linear_" in module
            axes[module] = (*outer, _experts(model, module)) if is_grouped else outer
    return [key for module, sizes in axes.items() for key in _shards(f"{module}._extra_state", sizes)]


def _experts(model: ModelConfig, module: str) -> int:
    return next(block.num_experts for block in model.blocks.values() if block.type == "moe")  # type: ignore[attr-defined]


def _shards(key: str, sizes: tuple[int, ...]) -> list[str]:
    """Return the keys of an object that megatron-core keeps for every index into axes of these sizes."""
    if not sizes:
        return [f"{key}/shard_0_1"]
    shape = ".".join(map(str, sizes))
    indices = [torch.unravel_index(torch.tensor(i), sizes) for i in range(math.prod(sizes))]
    return [f"{key}/shard_{'.'.join(str(int(one)) for one in index)}_{shape}" for index in indices]


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()
