"""A host in CPU memory for tensors of the CPU, which copies as late as it may."""

from __future__ import annotations

import weakref
from collections import Counter

import torch

from hybridtron.model.activation_offload import ActivationOffload
from hybridtron.model.pinned_memory import bytes_of

UNWRITTEN = 255  # a byte; floating-point numbers of such bytes are NaN


class LateHost:
    """Writes copies when they are waited for, and NaN before: whoever reads without waiting gets NaN, and a storage
    that was given up before its copy was waited for is never copied.

    `events` are what happened, in order: send and fetch with the number of storages, sent and fetched.
    """

    device = "cpu"

    def __init__(self):
        self.events = []
        self.living = Counter()  # bytes of copies, and of what came back
        self.sent = 0

    def send(self, storages):
        self.events.append(("send", len(storages)))
        self.sent += sum(storage.nbytes() for storage in storages)
        copies = [self.make("copies", storage.nbytes()) for storage in storages]
        origins = [weakref.ref(storage) for storage in storages]

        def write():
            for copy, origin in zip(copies, origins, strict=True):
                if (storage := origin()) is not None:
                    copy.copy_(bytes_of(storage))

        return copies, ("sent", write)

    def fetch(self, copies):
        self.events.append(("fetch", len(copies)))
        returned = [self.make("returned", copy.numel()) for copy in copies]

        def write():
            for tensor, copy in zip(returned, copies, strict=True):
                tensor.copy_(copy)

        return returned, ("fetched", write)

    def wait(self, event):
        name, write = event
        write()
        self.events.append((name, None))

    def make(self, kind, size):
        made = torch.full((size,), UNWRITTEN, dtype=torch.uint8)
        self.living[kind] += size
        weakref.finalize(made.untyped_storage(), self.living.subtract, {kind: size})
        return made


def offloaded(model, count):
    """Have the first layers of a model, or all for None, wait in a new host, whatever their tensors' sizes."""
    layers = model.layer_list
    host = LateHost()
    model.offload = ActivationOffload(layers, len(layers) if count is None else count, host, smallest=1)
    return host
