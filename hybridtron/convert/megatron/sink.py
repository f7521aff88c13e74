"""Write a checkpoint that megatron-core's `dist_checkpointing.load` reads."""

from __future__ import annotations

import argparse
import io
import json
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan

from hybridtron.checkpoint_reader import FORMAT
from hybridtron.convert.formats.checkpoint import CheckpointSink
from hybridtron.convert.formats.source import Shape, TensorInfo
from hybridtron.convert.mapping.entry import Entry
from hybridtron.convert.megatron.layers import LAYERS, stack, stacked_place
from hybridtron.convert.megatron.table import FINAL_NORMS, Naming
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
        tensors: every tensor, by its key, those of each layer by themselves.
        stacked: whether the tensors of all layers become one, with a first axis of layers.
        objects: keys of the objects, all of them None.
        common: content of common.pt.
        progress: called with the number of bytes of tensors written so far.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, TensorInfo],
        stacked: bool,
        objects: Iterable[str],
        common: Mapping[str, Any],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.objects, self.stacked = list(objects), stacked
        backends = {**FORMAT, **{f"{kind}_version": 1 for kind in ("sharded_backend", "common_backend")}}
        extra = {"common.pt": _saved(dict(common)), "metadata.json": json.dumps(backends).encode()}
        stored = stack(tensors) if stacked else tensors
        super().__init__(folder, stored, extra | {OBJECTS: _saved([None])}, progress=progress)
        self.tensors = {**self.tensors, **tensors}

    def write(self, name: str, tensor: Tensor, offsets: Shape | None = None) -> None:
        """Write a box of a tensor, or of a layer's; see `Sink.write`."""
        place = stacked_place(name) if self.stacked else None
        if place is None:
            super().write(name, tensor, offsets)
        else:
            super().write(place[0], tensor.unsqueeze(0), (place[1], *(offsets or (0,) * tensor.dim())))

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


def object_keys(model: ModelConfig, entries: Iterable[Entry], naming: Naming) -> list[str]:
    """Return the keys of the objects that megatron-core asks for beside the tensors of these entries."""
    layers = len(model.layer_names) // 2
    modules = dict.fromkeys(entry.name.partition(".weight")[0] for entry in entries)
    found = [f"{module}._extra_state/shard_0_1" for module in ("output_layer", FINAL_NORMS[naming.kind][:-7])]
    for module in modules:
        if not module.startswith(LAYERS) or not module.endswith((*STATEFUL, "pre_mlp_layernorm")):
            continue
        places = [((), ())] if ".experts.experts.linear_" not in module else _experts(model)
        for name in (module, module.replace("linear_qkv", "core_attention")):
            key, layer = (stacked_place(name) if naming.stacked else None) or (name, None)
            for index, sizes in places:
                outer = (index, sizes) if layer is None else ((layer, *index), (layers, *sizes))
                shard, shape = (".".join(map(str, numbers)) for numbers in outer)
                found.append(f"{key}._extra_state/shard_{shard or 0}_{shape or 1}")
    return list(dict.fromkeys(found))


def _experts(model: ModelConfig) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Return the index of each expert, with their number."""
    moe: Any = next(block for block in model.blocks.values() if block.type == "moe")
    return [((expert,), (moe.num_experts,)) for expert in range(moe.num_experts)]


def _saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()
