"""Forward and backward of every operation against its floor: the bytes it must move, or its FLOPs at the peak.

The floor is held against the time of the kernels: a call of less than a millisecond waits for Python to start them,
which a training step hides behind the work before.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import torch

from gpu_parts.kernel_table import kernel_seconds
from gpu_parts.op_calls import CALLS, TINY, WIDE, Draw, OpCall, Sizes, call_of
from gpu_parts.rows import Row, attempted
from gpu_parts.timing import Budget, interleaved, median
from hybridtron.accounting.peak import peak_flops_per_s
from hybridtron.ops.dispatch import OPERATIONS, Implementation, implementation_table

BANDWIDTHS = {"H100 PCIe": 2.0e12, "H100": 3.35e12, "H200": 4.8e12}  # bytes a second
REPEATS = 10


def op_rows(tiny: bool, device: torch.device, budget: Budget) -> Iterator[Row]:
    """Yield a row for every implementation that takes bfloat16 tensors of the device."""
    implementation_table(device)
    size = TINY if tiny else WIDE
    for name in OPERATIONS:
        for entry in OPERATIONS[name].implementations:
            call = partial(_rows, name, entry, size, device, budget)
            yield from attempted("op", f"{name}, {entry.name}", call)


def _rows(name: str, entry: Implementation, size: Sizes, device: torch.device, budget: Budget) -> list[Row]:
    budget.require(1)
    if name not in CALLS:
        raise LookupError("has no call in gpu_parts/op_calls.py")
    call, operation = call_of(name, entry.name), OPERATIONS[name]
    with patch.dict(OPERATIONS, {name: operation._replace(implementations=(entry,))}):
        try:
            return [_timed(name, entry.name, call, size, device, budget)]
        except LookupError as error:
            if str(error).startswith(f"{name}: no implementation"):
                return []  # it is for other tensors
            raise


def _timed(name: str, implementation: str, call: OpCall, size: Sizes, device: torch.device, budget: Budget) -> Row:
    inputs = call.inputs(Draw(size, device, torch.bfloat16))
    y = call.call(size, *inputs)
    direction = torch.ones_like(y)

    def step() -> None:
        torch.autograd.grad(call.call(size, *inputs), inputs, direction)

    times = interleaved({name: step}, device, 1 if device.type == "cpu" else REPEATS, budget, warmup=2)[name]
    kernels = kernel_seconds(step) if device.type == "cuda" else None
    seconds, flops = median(times), 3 * call.flops(size)
    # Forward reads the inputs and writes the output; backward reads both and the gradient, and writes gradients.
    moved = 3 * sum(t.nbytes for t in inputs) + 2 * y.nbytes
    return Row(
        "op",
        f"{name}, {implementation}",
        seconds,
        kernels=kernels,
        tflops=flops / (kernels or seconds) / 1e12,
        floor=_floor(moved, flops, device, kernels) if kernels else None,
    )


def _floor(moved: int, flops: float, device: torch.device, seconds: float) -> float | None:
    """Return the share of the time that the device needs at least; None where its speed is not known."""
    name = torch.cuda.get_device_name(device)
    bandwidth = next((rate for part, rate in BANDWIDTHS.items() if part in name), None)
    peak = peak_flops_per_s(device, "bf16")
    return max(moved / bandwidth, flops / peak) / seconds if bandwidth and peak else None
