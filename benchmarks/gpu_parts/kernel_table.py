"""Where the time of a step goes: its kernels on the device by their time."""

from __future__ import annotations

from pathlib import Path

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_parts.timing import Step

STEPS, ROWS = 2, 40


def append_kernels(file: Path, name: str, step: Step) -> None:
    """Append the kernels of a step that take longest: milliseconds, calls, name."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        for _ in range(STEPS):
            step()
    kernels = [event for event in recorded.key_averages() if event.device_type == DeviceType.CUDA]
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    total = sum(event.self_device_time_total for event in kernels) / STEPS / 1e3
    with file.open("a") as text:
        print(f"{name}: {total:.2f} ms of kernels, {sum(event.count for event in kernels) // STEPS} calls", file=text)
        for event in kernels[:ROWS]:
            milliseconds = event.self_device_time_total / STEPS / 1e3
            print(f"{milliseconds:10.3f} {event.count // STEPS:6d}  {event.key[:120]}", file=text)
