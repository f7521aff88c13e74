"""Activations of layers that wait for their backward pass in CPU memory.

What the first layers of a run save for their backward pass leaves the device after their forward pass, and comes back
while the backward pass of the layer after them goes on (Rhu et al. 2016, vDNN, arXiv 1602.08124). Values, shapes and
strides are the same then, so gradients are too, bit for bit. Where tensors go is a `Host`'s part: see
`hybridtron.model.pinned_memory`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves

SMALLEST = 1 << 20  # bytes; it takes longer to begin a copy of less than to copy it
_MODIFIED = (
    "a tensor that the backward pass needs was modified in place after it was saved: its version is {}, expected {}"
)


class Host(Protocol):
    """Memory beside that of a device. Nothing here waits: copies are put in order with what the device computes."""

    device: str  # the kind of device that tensors leave

    def send(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[Any], Any]:
        """Begin to copy storages once they are computed; return the copies, and the event that they are whole."""

    def fetch(self, copies: Sequence[Any]) -> tuple[list[Tensor], Any]:
        """Begin to copy back; return bytes on the device, and the event that they are whole."""

    def wait(self, event: Any) -> None:
        """Have what the device computes from now on wait for an event."""


class SavedStorage:
    """A storage that the backward pass needs. It lives as long as autograd needs a tensor in it: on the device, then in
    CPU memory, then on the device again."""

    def __init__(self, tensor: Tensor) -> None:
        self.origin = weakref.ref(tensor.untyped_storage())
        self.version = tensor._version
        self.on_device: list[Tensor] = []  # what was saved in it, until it has left
        self.found = self.version  # the version when it left
        self.copy: Any = None
        self.arrival: Arrival | None = None
        self.returned = torch.empty(0)  # bytes

    def holds(self, tensor: Tensor) -> bool:
        """Return whether this is, or was copied from, what the tensor's storage holds now."""
        return self.origin() is tensor.untyped_storage() and self.version == tensor._version

    def look(self) -> None:
        """Note a modification in place of what was saved, while it is on the device."""
        self.found = max((tensor._version for tensor in self.on_device), default=self.found)

    def leave(self) -> None:
        """Give up the device's memory."""
        self.look()
        self.on_device = []


class SavedTensor(NamedTuple):
    """A tensor that is saved as a part of a storage."""

    storage: SavedStorage
    place: int  # among those saved in it
    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    def restored(self, offload: ActivationOffload) -> Tensor:
        """Return the tensor on the device. RuntimeError where it was modified in place before it left."""
        storage = self.storage
        if storage.on_device:
            storage.look()
        if storage.found != storage.version:
            raise RuntimeError(_MODIFIED.format(storage.found, storage.version))
        if storage.on_device:
            return storage.on_device[self.place]
        arrival = storage.arrival or Arrival(offload, [storage])
        arrival.wait()
        whole = storage.returned[: storage.returned.numel() // self.dtype.itemsize * self.dtype.itemsize]
        return whole.view(self.dtype).as_strided(self.size, self.stride, self.offset)


class KeptTensor(NamedTuple):
    """A tensor that is saved where it is."""

    tensor: Tensor
    version: int

    def restored(self, offload: ActivationOffload) -> Tensor:
        """Return the tensor. RuntimeError where it was modified in place, which autograd does not see behind hooks."""
        if self.tensor._version != self.version:
            raise RuntimeError(_MODIFIED.format(self.tensor._version, self.version))
        return self.tensor


class Arrival:
    """Storages on their way back to the device. What they are written to is held until they are whole."""

    def __init__(self, offload: ActivationOffload, storages: Sequence[SavedStorage]) -> None:
        self.offload = offload
        self.tensors, self.event = offload.host.fetch([storage.copy for storage in storages])
        for storage, returned in zip(storages, self.tensors, strict=True):
            storage.returned, storage.arrival = returned, self
        offload.arriving.append(self)

    def wait(self) -> None:
        """Have the device wait for them, once."""
        if self in self.offload.arriving:
            self.offload.arriving.remove(self)
            self.offload.host.wait(self.event)
            self.tensors = []


class LayerPass:
    """What one layer saves in one forward pass. `known` has the storages of the layers before, by address."""

    def __init__(self, offload: ActivationOffload, known: dict[int, weakref.ref[SavedStorage]]) -> None:
        self.offload, self.known = offload, known
        self.storages: list[weakref.ref[SavedStorage]] = []
        self.event: Any = None

    def save(self, tensor: Tensor) -> SavedTensor | KeptTensor:
        """Return what autograd keeps in place of a tensor: the pack hook."""
        if not self.offload.moves(tensor):
            self.offload.on_kept(tensor)
            # Detached: a node that keeps its own output with its graph is never freed.
            return KeptTensor(tensor.detach(), tensor._version)
        address = tensor.untyped_storage()._cdata
        known = self.known.get(address)
        storage = None if known is None else known()
        if storage is None or not storage.holds(tensor):
            storage = SavedStorage(tensor)
            self.known[address] = weakref.ref(storage)
        if all(each() is not storage for each in self.storages):
            self.storages.append(weakref.ref(storage))
        if storage.on_device or storage.copy is None:
            storage.on_device.append(tensor.detach())
        place, offset = len(storage.on_device) - 1, int(tensor.storage_offset())
        return SavedTensor(storage, place, tensor.dtype, tensor.shape, tensor.stride(), offset)

    def restore(self, saved: SavedTensor | KeptTensor) -> Tensor:
        """Return the tensor for the backward pass: the unpack hook."""
        return saved.restored(self.offload)

    def send(self) -> None:
        """Begin to copy, after the forward pass of the layer, what it has saved and no layer before it."""
        new = [storage for storage in self._alive() if storage.copy is None]
        if new:
            copies, self.event = self.offload.host.send([each.on_device[0].untyped_storage() for each in new])
            for storage, copy in zip(new, copies, strict=True):
                storage.copy = copy

    def leave(self) -> None:
        """Give up the device's memory as soon as the copies are whole."""
        if self.event is not None:
            self.offload.host.wait(self.event)
            self.event = None
        for storage in self._alive():
            storage.leave()

    def fetch(self, *_: Any) -> None:
        """Begin to copy back what is not on the device."""
        away = [storage for storage in self._alive() if not storage.on_device and storage.arrival is None]
        if away:
            Arrival(self.offload, away)

    def _alive(self) -> list[SavedStorage]:
        """Return the storages that autograd still needs."""
        found = (each() for each in self.storages)
        return [storage for storage in found if storage is not None]


class ActivationOffload:
    """Runs `layers`, and keeps what the first `count` of them save in the memory of a host.

    Kept where they are: parameters, buffers and views of them, storages of fewer than `smallest` bytes (by default
    SMALLEST), and tensors of other devices and kinds. `on_kept` is told of these.
    """

    def __init__(self, layers: Sequence[nn.Module], count: int, host: Host, smallest: int | None = None) -> None:
        self.layers, self.count, self.host = list(layers), count, host
        self.smallest = SMALLEST if smallest is None else smallest
        self.own = [each for layer in layers for each in (*layer.parameters(), *layer.buffers())]
        self.arriving: list[Arrival] = []
        self.on_kept: Callable[[Tensor], object] = lambda tensor: None
        self.fixed: set[int] = set()

    def moves(self, tensor: Tensor) -> bool:
        """Return whether a tensor leaves the device."""
        return (
            type(tensor) is Tensor
            and tensor.device.type == self.host.device
            and tensor.layout is torch.strided
            and not (tensor.is_conj() or tensor.is_neg())  # what is read then is not what lies in memory
            and tensor.untyped_storage().nbytes() >= self.smallest
            and tensor.untyped_storage()._cdata not in self.fixed
        )

    def run(self, stream: Any, *arguments: Any) -> Any:
        """Map the stream before the layers to that after them, by calling them in turn."""
        for arrival in list(self.arriving):  # of a backward pass that has failed
            arrival.wait()
        self.fixed = {each.untyped_storage()._cdata for each in self.own}
        known: dict[int, weakref.ref[SavedStorage]] = {}
        before: LayerPass | None = None
        for index, layer in enumerate(self.layers):
            saves = LayerPass(self, known) if index < self.count else None
            if saves is None:
                stream = layer(stream, *arguments)
            else:
                with saved_tensors_hooks(saves.save, saves.restore):
                    stream = layer(stream, *arguments)
                saves.send()
            last = index == len(self.layers) - 1
            leaving = [each for each in (before, saves if last else None) if each]
            for each in leaving:
                each.leave()
            for each in reversed(leaving):  # what is needed first comes first
                _at_gradient(stream, each.fetch)
            before = saves
        return stream


def _at_gradient(stream: Any, action: Callable[[Tensor], None]) -> None:
    """Call an action when the backward pass reaches a stream."""
    for tensor in tree_leaves(stream):
        if tensor.requires_grad and tensor.grad_fn is not None:
            tensor.register_hook(action)
