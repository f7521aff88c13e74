"""Layers that lie in one tensor, along a first axis, seen as tensors of their own."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from hybridtron.convert.formats.source import Shape, Source, TensorInfo

LAYERS = "decoder.layers."
NUMBERED = re.compile(rf"{re.escape(LAYERS)}(\d+)\.(.+)")


def stacked_place(name: str) -> tuple[str, int] | None:
    """Return the key and index of a layer's tensor where layers are stacked; None for a tensor of no layer."""
    found = NUMBERED.fullmatch(name)
    return (LAYERS + found[2], int(found[1])) if found else None


def stack(tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Return the tensors of which each has all layers, for tensors of single layers."""
    stacked: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        key, layer = stacked_place(name) or (name, None)
        stacked[key] = info if layer is None else TensorInfo((layer + 1, *info.shape), info.dtype)
    return stacked


class SingleLayers:
    """The tensors of a source whose layers are stacked, as those of single layers; see `Source`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.tensors: dict[str, TensorInfo] = {}
        for key, info in source.tensors.items():
            if not key.startswith(LAYERS):
                self.tensors[key] = info
                continue
            for layer in range(info.shape[0] if info.shape else 0):
                name = f"{LAYERS}{layer}.{key.removeprefix(LAYERS)}"
                self.tensors[name] = TensorInfo(info.shape[1:], info.dtype)

    def read(self, name: str, offsets: Shape | None = None, sizes: Shape | None = None) -> Tensor:
        """Read a box of a tensor; see `Source.read`."""
        place = stacked_place(name)
        if place is None:
            return self.source.read(name, offsets, sizes)
        shape = self.tensors[name].shape
        offsets, sizes = offsets or (0,) * len(shape), shape if sizes is None else sizes
        return self.source.read(place[0], (place[1], *offsets), (1, *sizes))[0]
