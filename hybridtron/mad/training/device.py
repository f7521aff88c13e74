"""The device and the processes to train in."""

from __future__ import annotations

import os
import re

import torch

from hybridtron.errors import UserError


def require_device(device: str) -> None:
    """Raise UserError for an unknown device, or one that this machine lacks."""
    found = re.fullmatch(r"cpu|cuda(?::(\d+))?", device)
    if not found:
        raise UserError(f"device {device!r}: expected one of cpu, cuda, cuda:0, cuda:1, ...")
    if device == "cpu":
        return
    if not torch.cuda.is_available():
        raise UserError(f"device {device!r}: this machine has no usable GPU; expected cpu")
    count = torch.cuda.device_count()
    if found[1] and int(found[1]) >= count:
        raise UserError(f"device {device!r}: expected at most cuda:{count - 1}, the last GPU of this machine")


def best_device() -> str:
    """Return cuda where there is one, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def default_processes(device: str) -> int:
    """Return one per core of this process, or one on a GPU."""
    return len(os.sched_getaffinity(0)) if device == "cpu" else 1
