"""Pinned CPU memory, which a GPU copies to and from while it computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class PinnedMemory:
    """A `Host` for the storages of the current GPU: copies on a stream of their own.

    Memory on the GPU is that of the stream that computes, on both ways: it is used again in the order of that stream,
    which waits for the events. PyTorch keeps pinned memory that is free for the next step.
    """

    device = "cuda"

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()

    def send(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Begin to copy storages once they are computed; return the copies, and the event that they are whole."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            copies = [torch.empty(each.nbytes(), dtype=torch.uint8, pin_memory=True) for each in storages]
            for copy, storage in zip(copies, storages, strict=True):
                copy.copy_(bytes_of(storage), non_blocking=True)
            return copies, self.stream.record_event()

    def fetch(self, copies: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Begin to copy back; return bytes on the GPU, and the event that they are whole."""
        returned = [torch.empty_like(copy, device=self.device) for copy in copies]
        self.stream.wait_stream(torch.cuda.current_stream())  # which may still use that memory for what was there
        with torch.cuda.stream(self.stream):
            for tensor, copy in zip(returned, copies, strict=True):
                tensor.copy_(copy, non_blocking=True)
            return returned, self.stream.record_event()

    def wait(self, event: torch.cuda.Event) -> None:
        """Have what the GPU computes from now on wait for an event."""
        torch.cuda.current_stream().wait_event(event)


def bytes_of(storage: torch.UntypedStorage) -> Tensor:
    """Return a storage as a tensor of its bytes."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def pinned_bytes(size: int) -> int:
    """Compute what PyTorch takes for a tensor in pinned memory: its size, rounded up to a power of two."""
    return 1 << (size - 1).bit_length() if size else 0
