"""Choose and launch Triton kernels. Triton is imported by the first launch, so nothing on a CPU imports it.

Each kernel has a function that allocates its results and launches it, with fixed block sizes: there is no autotuning.
On tensors without values a launch does nothing, so the same function counts memory in a dry run. With the environment
variable TRITON_INTERPRET=1, set before Triton is imported, kernels run on CPU tensors in Triton's interpreter.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hybridtron.ops import dispatch
from hybridtron.ops.device import device_type
from hybridtron.ops.elementwise.precision import under_transforms

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (Tensor, nn.Parameter)
MAX_BLOCKS = 65535  # that CUDA takes along the second or third axis of a grid


def triton_kernels(
    function: Callable[..., Any], condition: str = "", fits: Callable[..., bool] = lambda *_: True
) -> dispatch.Implementation:
    """Return the row of an implementation by Triton kernels, taken where `takes` and `fits` accept the arguments of
    `select`; `condition` describes `fits`."""
    text = "on CUDA, float32, bfloat16 or float16" + (f", {condition}" if condition else "")
    return dispatch.Implementation("Triton", text, lambda *given: takes(*given) and fits(*given), function)


def takes(*arguments: Any) -> bool:
    """Return whether kernels can take these arguments: plain tensors on CUDA, or without values in a dry run for CUDA,
    of the dtypes that kernels load, under no torch.func transform."""
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if under_transforms() or any(device_type(t.device) != "cuda" or t.dtype not in DTYPES for t in tensors):
        return False
    if os.environ.get("HYBRIDTRON_TRITON") == "0":
        return False
    if dispatch.have_no_values(tuple(tensors)):
        return True
    return all(t.is_cuda and type(t) in _PLAIN for t in tensors) and is_installed()


@functools.cache
def is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def launch(kernel: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launch the kernel "MODULE:NAME" of the folder `kernels`, unless there is nothing to compute.

    It runs on the device of its first tensor. `constants` are the kernel's constexpr parameters, and num_warps and
    num_stages.
    """
    if 0 in grid or dispatch.have_no_values(arguments):
        return
    with torch.cuda.device_of(next(argument for argument in arguments if isinstance(argument, Tensor))):
        _find(kernel)[grid](*arguments, **constants)


@functools.cache
def _find(kernel: str) -> Any:
    module, name = kernel.split(":")
    return getattr(importlib.import_module(f"hybridtron.ops.triton.kernels.{module}"), name)


def widen(x: Tensor) -> bool:
    """Return whether products of matrices like x must be of float32: Triton's interpreter has none of bfloat16."""
    return x.dtype == torch.bfloat16 and not x.is_cuda


def ceil_div(count: int, size: int) -> int:
    """Return how many blocks of `size` cover `count`."""
    return -(-count // size)


def power_of_two(least: int) -> int:
    """Return the smallest power of two that is not below `least`, at least 1."""
    return 1 << max(0, least - 1).bit_length()
