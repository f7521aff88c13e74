"""Seconds of parts, phase by phase, in repeats that take turns, so that what else the machine does hits all alike."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from hybridtron.efficiency.machine import finish, seconds
from hybridtron.efficiency.parts import Part

PHASES = ("train", "prefill", "decode")
PASSES = "forward_backward"  # the part of training before the optimizer
DECODED = 8  # tokens of one measurement
MOST_OTHERS = 1 << 26  # 256 MiB in float32, more than caches hold

Times = dict[str, dict[str, list[float]]]
"""Seconds by part and phase, of each repeat; of decoding those of one token."""


def measure_times(
    parts: Mapping[str, Part],
    batch: int,
    length: int,
    repeats: int,
    advance: Callable[[], None] = lambda: None,
    other_weights: int = 0,
) -> Times:
    """Time every phase of every part. The first run of each is not counted. `advance` is called after each repeat.

    `other_weights` is how many numbers a model of these parts has beside those of one part of each kind.
    """
    others = torch.ones(min(other_weights, MOST_OTHERS))
    for part in parts.values():
        part.prepare(batch, length)
        part.train()
        part.release()
        part.prefill()
        part.make_room()
        part.decode()
        part.release()
    times: Times = {name: {phase: [] for phase in (*PHASES, PASSES)} for name in parts}
    for _ in range(repeats):
        for name, part in parts.items():
            passes = seconds(part.passes, part.device)
            times[name][PASSES].append(passes)
            times[name]["train"].append(passes + seconds(part.update, part.device))
            part.release()
            times[name]["prefill"].append(seconds(part.prefill, part.device))
            part.make_room()
        for name, spent in _decode(parts, others).items():
            times[name]["decode"].append(spent / DECODED)
        for part in parts.values():
            part.release()
        advance()
    return times


def _decode(parts: Mapping[str, Part], others: Tensor) -> dict[str, float]:
    """Return the seconds of DECODED tokens of each part.

    On a CPU the parts take turns at every token, and `others` are read once a token, as the layers of a model do: a
    small part that goes on by itself would find its weights in caches that a model's other layers need too.
    """
    spent = dict.fromkeys(parts, 0.0)
    on_cpu = all(part.device.type == "cpu" for part in parts.values())
    at_once = 1 if on_cpu else DECODED
    pieces = others.chunk(len(parts)) if on_cpu and len(others) else ()
    for _ in range(DECODED // at_once):
        for index, (name, part) in enumerate(parts.items()):
            spent[name] += seconds(partial(_steps, part, at_once), part.device)
            if index < len(pieces):
                pieces[index].sum()
    return spent


def _steps(part: Part, tokens: int) -> None:
    for _ in range(tokens):
        part.decode()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Return the most memory that a call takes beside what is there before it; None where nothing counts it."""
    gc.collect()
    if device.type == "cuda":
        finish(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the highest resident memory is counted anew
        before = _resident("VmRSS")
        call()
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _resident(entry: str) -> int:
    """Return a number of bytes from this process's status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no line {entry}")
