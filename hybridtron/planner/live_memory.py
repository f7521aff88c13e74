"""Bytes of tensors that live during a forward and a backward pass without values."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridtron.planner.remembered import RememberedLayouts


@dataclass(frozen=True)
class Phase:
    """A part of a pass, forward or backward: the embedding, a layer, or the loss with the final norm and logits."""

    part: str  # the block's name for a layer
    layer: int | None = None
    backward: bool = False

    def __str__(self) -> str:
        name = self.part if self.layer is None else f"layer {self.layer} ({self.part})"
        return f"{'backward' if self.backward else 'forward'} pass of {name}"


class LiveMemory(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside the block, as long as they live, and the most at once.

    Storages that exist before (parameters) are given as `outside` and not counted.
    """

    def __init__(self, outside: Iterable[Tensor], phase: Phase) -> None:
        super().__init__()
        self.live = 0
        self.saved: dict[int, Phase] = {}  # storages that the backward pass needs, with the phase that made them
        self.largest: Counter[Phase] = Counter()  # most bytes that lived during a phase
        self.at_start: dict[Phase, int] = {}
        self._sizes: dict[int, int] = {}
        self._operations = RememberedLayouts()
        self._outside = {tensor.untyped_storage()._cdata for tensor in outside}
        self.enter(phase)

    def enter(self, phase: Phase) -> None:
        """Count what follows as a part of this phase."""
        self.phase = phase
        self.at_start[phase] = self.largest[phase] = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = self._operations.call(func, args, kwargs or {})
        if type(made) is Tensor:
            self._count(made.untyped_storage())
            return made
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def save(self, tensor: Tensor) -> Tensor:
        """Note that the backward pass needs the tensor: the pack hook of `saved_tensors_hooks`."""
        key = tensor.untyped_storage()._cdata
        if key in self._sizes:
            self.saved.setdefault(key, self.phase)
        return tensor

    def is_saved(self, tensor: Tensor) -> bool:
        """Return whether the backward pass needs the tensor's storage."""
        return tensor.untyped_storage()._cdata in self.saved

    def kept(self) -> dict[str, int]:
        """Return the bytes that the backward pass still needs, by the part that keeps them."""
        sizes: Counter[str] = Counter()
        for key, phase in self.saved.items():
            sizes[phase.part] += self._sizes[key]
        return dict(sizes)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._sizes or key in self._outside:
            return
        self._sizes[key] = size
        self.live += size
        self.largest[self.phase] = max(self.largest[self.phase], self.live)
        weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
        self.saved.pop(key, None)


def mark_phases(memory: LiveMemory, forward: Phase, module: nn.Module) -> None:
    """Enter a phase when the module starts its forward pass, and that of the backward pass when it starts that."""

    def start_backward(grad: Tensor) -> None:
        memory.enter(replace(forward, backward=True))

    def at_output(_: nn.Module, inputs: Any, output: Any) -> None:
        tensor = tree_leaves(output)[0]
        if tensor.requires_grad:
            tensor.register_hook(start_backward)

    module.register_forward_pre_hook(lambda *_: memory.enter(forward))
    module.register_forward_hook(at_output)
