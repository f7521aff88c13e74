"""Every operation's implementations and the condition under which each is taken.

An op takes the first implementation whose condition its arguments meet; `hybridtron doctor` prints this table.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hybridtron.ops.device import choosing_for
from hybridtron.ops.elementwise.precision import under_transforms
from hybridtron.ops.native.library import kernels_for
from hybridtron.ops.opaque import opaque


class Implementation(NamedTuple):
    """One way to compute an operation. `accepts` is called with what the op gives to `select`.

    `without_values` takes the place of a function that cannot run on the meta device: it gives the same shapes and
    keeps as many bytes for the backward pass, with the source of what the function keeps. torch.compile looks into the
    function that is `compiled` and fuses it; of an operation without one, it calls what is taken as it is.
    """

    name: str
    condition: str
    accepts: Callable[..., bool]
    function: Callable[..., Any]
    without_values: Callable[..., Any] | None = None
    compiled: bool = False


class Operation(NamedTuple):
    """One row of the table. `sample` returns float32 arguments for `select`, as of a small ordinary call."""

    label: str
    implementations: tuple[Implementation, ...]
    sample: Callable[[Tensor], tuple[Any, ...]]


OPERATIONS: dict[str, Operation] = {}


def register(
    operation: str,
    label: str,
    *implementations: Implementation,
    sample: Callable[[Tensor], tuple[Any, ...]] = lambda one: (),
) -> None:
    """Add an operation to the table; `sample` gets a tensor [1, 1] to make arguments for `select` from."""
    OPERATIONS[operation] = Operation(label, implementations, sample)


def select(operation: str, *arguments: Any) -> Callable[..., Any]:
    """Return the function of the implementation that takes these arguments."""
    implementations = OPERATIONS[operation].implementations
    if torch.compiler.is_compiling():
        for implementation in implementations:
            if implementation.compiled:
                return implementation.function
        return partial(_call_selected, operation, arguments)
    for implementation in implementations:
        if implementation.accepts(*arguments):
            dry = implementation.without_values
            return dry if dry and have_no_values(arguments) else implementation.function
    raise LookupError(f"{operation}: no implementation takes these arguments")


@opaque
def _call_selected(operation: str, selecting: tuple[Any, ...], *arguments: Any) -> Any:
    return select(operation, *selecting)(*arguments)


def have_no_values(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(argument, Tensor) and argument.is_meta for argument in arguments)


def implementation_table(device: torch.device) -> list[dict[str, Any]]:
    """Return, for each operation, all implementations and which an ordinary call takes: in float32 on the device, and
    in bfloat16 on CUDA with the packages that are installed here."""
    package = importlib.import_module("hybridtron.ops")
    for module in pkgutil.walk_packages(package.__path__, "hybridtron.ops."):
        if "triton.kernels" not in module.name:  # they import Triton and register nothing
            importlib.import_module(module.name)
    one = torch.ones(1, 1, device=device)
    half = torch.ones(1, 1, device=device if device.type == "cuda" else "meta", dtype=torch.bfloat16)
    return [
        {
            "operation": name,
            "label": label,
            "taken": _taken(implementations, sample(one)),
            "taken_on_cuda": _taken_on_cuda(implementations, sample(half)),
            "implementations": [{"name": entry.name, "condition": entry.condition} for entry in implementations],
        }
        for name, (label, implementations, sample) in sorted(OPERATIONS.items())
    ]


def _taken(implementations: tuple[Implementation, ...], arguments: tuple[Any, ...]) -> str:
    return next(entry.name for entry in implementations if entry.accepts(*arguments))


def _taken_on_cuda(implementations: tuple[Implementation, ...], arguments: tuple[Any, ...]) -> str:
    with choosing_for("cuda"):
        return _taken(implementations, arguments)


def plain(function: Callable[..., Any], *, compiled: bool = False) -> Implementation:
    """Return the row of an implementation that torch.func can transform: fused ones write into buffers."""
    condition = "under a torch.func transform"
    return Implementation("plain PyTorch", condition, lambda *_: under_transforms(), function, compiled=compiled)


def kernels(function: Callable[..., Any]) -> Implementation:
    return Implementation("C kernels", "float32 on a CPU", lambda *tensors: kernels_for(*tensors) is not None, function)


def otherwise(name: str, function: Callable[..., Any], *, compiled: bool = False) -> Implementation:
    return Implementation(name, "otherwise", lambda *_: True, function, compiled=compiled)


def always(name: str, function: Callable[..., Any]) -> Implementation:
    return Implementation(name, "always", lambda *_: True, function)
