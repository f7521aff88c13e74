"""Where the time of a step goes: its kernels on the device by their time."""

from __future__ import annotations

from pathlib import Path

from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEventAvg
from torch.profiler import ProfilerActivity, profile

from gpu_parts.timing import Step

STEPS, ROWS = 2, 40


def append_kernels(file: Path, name: str, step: Step) -> None:
    """Append the kernels of a step that take longest: milliseconds, calls, name."""
    kernels = _kernels(step)
    total = sum(event.self_device_time_total for event in kernels) / STEPS / 1e3
    with file.open("a") as text:
        print(f"{name}: {total:.2f} ms of kernels, {sum(event.count for event in kernels) // STEPS} calls", file=text)
        for event in kernels[:ROWS]:
            milliseconds = event.self_device_time_total / STEPS / 1e3
            print(f"{milliseconds:10.3f} {event.count // STEPS:6d}  {str(event.key)[:120]}", file=text)


def kernel_seconds(step: Step) -> float:
    """Return the seconds that a step's kernels take on the device, without the time between them."""
    return sum(float(event.self_device_time_total) for event in _kernels(step)) / STEPS / 1e6


def _kernels(step: Step) -> list[FunctionEventAvg]:
    """Run a few steps; return their kernels, those that take longest first."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            step()
    kernels = [event for event in recorded.key_averages() if event.device_type == DeviceType.CUDA]
    return sorted(kernels, key=lambda event: event.self_device_time_total, reverse=True)
