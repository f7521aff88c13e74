"""The device and the processes to train in."""

from __future__ import annotations

import os

import torch

from hybridtron.errors import UserError


def require_device(device: str) -> None:
    """Raise UserError for an unknown device, or one that this machine lacks."""
    if device not in ("cpu", "cuda"):
        raise UserError(f"device {device!r}: expected one of cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda': this machine has no usable GPU; expected cpu")


def best_device() -> str:
    """Return cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_processes(device: str) -> int:
    """Return one per core of this process, or one on a GPU."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
