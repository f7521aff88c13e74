"""The device for which ops choose an implementation: that of their tensors, or the one that a dry run stands for; and
copies of tensors to a device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

_stands_for: str | None = None


@contextlib.contextmanager
def choosing_for(device_type: Literal["cpu", "cuda"]) -> Iterator[None]:
    """Make every op inside the block choose its implementation as for tensors on this type of device.

    The tensors have no values (device "meta"), or are CPU tensors that take the PyTorch implementations of CUDA. On
    tensors without values a compiled kernel does nothing.
    """
    global _stands_for
    before, _stands_for = _stands_for, device_type
    try:
        yield
    finally:
        _stands_for = before


def device_type(device: torch.device) -> str:
    """Return the type of device for which ops choose."""
    return _stands_for or device.type


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device; to a GPU from pinned memory, so that nothing waits for the copy."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
