"""Rates of a device, against which a measured time can be held."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from hybridtron.ops.linear import linear

MATRIX = {"cpu": 2048, "cuda": 8192}  # rows of the square matrices that are multiplied
READ_ROWS = {"cpu": 8192, "cuda": 32768}  # of the square matrix that is read to multiply it by a vector
TRIALS = 5


@dataclass(frozen=True)
class Machine:
    """`flops_per_s` is that of matrix products in the models' number format, `bytes_per_s` that of reading memory."""

    name: str
    threads: int
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int


def measure_machine(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure the best of some products of large matrices, and of a larger one by a vector."""
    a, b = (torch.randn(MATRIX[device.type], MATRIX[device.type], device=device).to(dtype) for _ in range(2))
    flops = 2 * len(a) ** 3 / min(seconds(lambda: linear(a, b), device) for _ in range(TRIALS))
    read = torch.ones(READ_ROWS[device.type], READ_ROWS[device.type], device=device, dtype=dtype)
    vector = torch.ones(len(read), device=device, dtype=dtype)
    moved = read.numel() * read.element_size() / min(seconds(lambda: read @ vector, device) for _ in range(TRIALS))
    return Machine(_name(device), torch.get_num_threads(), flops, moved, memory_of(device))


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call, with all the work that it gives to a GPU."""
    finish(device)
    begin = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def memory_of(device: torch.device) -> int:
    """Return the bytes of memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no line MemTotal")


def _name(device: torch.device) -> str:
    """Return the name of a processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
