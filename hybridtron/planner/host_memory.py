"""Pinned CPU memory of a dry run: counts what it would hold."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hybridtron.model.pinned_memory import pinned_bytes


class HostMemory:
    """A `Host` (`hybridtron.model.activation_offload`) for tensors without values. `size` is what was sent, in bytes of
    pinned memory."""

    device = "meta"

    def __init__(self) -> None:
        self.size = 0

    def send(self, storages: Sequence[torch.UntypedStorage]) -> tuple[list[int], None]:
        """Count the storages; return their sizes for copies."""
        sizes = [storage.nbytes() for storage in storages]
        self.size += sum(map(pinned_bytes, sizes))
        return sizes, None

    def fetch(self, copies: Sequence[int]) -> tuple[list[Tensor], None]:
        """Make tensors of the sizes of the storages."""
        return [torch.empty(size, dtype=torch.uint8, device=self.device) for size in copies], None

    def wait(self, event: None) -> None:
        """Wait for nothing."""
