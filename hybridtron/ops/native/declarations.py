"""Calls of the compiled kernels, each checked against the declaration of the kernel in the C source (see common.h).

A kernel is handed bare addresses: what is not refused here would be read or written outside the memory of a tensor.
A call costs one expression, compiled once for each kernel; only where that is false is the reason looked for.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hybridtron.ops.device import device_type

_KERNEL = re.compile(r"^KERNEL (\w+)\((.*?), int threads\)(?:\s*REQUIRE\((.*?)\))? \{", re.MULTILINE | re.DOTALL)
_IN_PARENTHESES = r"\(((?:[^()]|\([^()]*\))*)\)"
_PARAMETER = re.compile(
    rf"(?:const )?(long|float) (\*?)(\w+)(?: SHAPE{_IN_PARENTHESES})?(?: STRIDES{_IN_PARENTHESES})?( OPTIONAL)?(?:,|$)"
)
_COMMA = re.compile(r", (?![^(]*\))")  # outside of parentheses
_CONSTANT = re.compile(r"(\w+) = (\d+)")
_LARGEST = 1 << 60  # integer: kernels add two without overflow; the tensors that they index bound their products
_TYPES = {"array": ctypes.c_void_p, "long": ctypes.c_long, "float": ctypes.c_float}
PLAIN = (Tensor, nn.Parameter)


class _Condition(NamedTuple):
    """What must hold of the arguments, as a Python expression, and the error where it does not."""

    expression: str
    error: type[Exception]
    parameter: str | None
    expected: str


class _Parameter(NamedTuple):
    kind: str  # "long" or "float", or "array" with a shape
    name: str
    shape: str
    strides: str  # those of all axes but the last, or "" where the array is contiguous
    optional: bool

    @property
    def conditions(self) -> Iterator[_Condition]:
        """Yield the conditions on this argument, in the order in which they can be evaluated."""
        name = self.name
        if self.kind == "float":
            yield _Condition(f"(type({name}) is float or type({name}) is int)", TypeError, name, "a number")
        elif self.kind == "long":
            yield _Condition(f"type({name}) is int", TypeError, name, "an int")
            yield _Condition(f"0 <= {name} <= {_LARGEST}", ValueError, name, f"0 to {_LARGEST}")
        else:
            unless = f"{name} is None or " if self.optional else ""
            yield _Condition(f"({unless}is_plain({name}))", TypeError, name, "a plain float32 tensor on the CPU")
            layout = f"at least [{self.shape}], " + (f"strides [{self.strides}, 1]" if self.strides else "contiguous")
            yield _Condition(f"({unless}{self._fits})", ValueError, name, layout)

    @property
    def _fits(self) -> str:
        """Return the condition that the tensor has at least the elements of the shape, where they are declared."""
        name, shape = self.name, _COMMA.split(self.shape)
        if not self.strides:
            elements = " * ".join(f"({extent})" for extent in shape)
            return f"{name}.is_contiguous() and {name}.numel() >= {elements}"
        strides = [*_COMMA.split(self.strides), "1"]
        axes = [
            f"sizes[{axis}] >= {extent} and ({extent} < 2 or steps[{axis}] == {stride})"
            for axis, (extent, stride) in enumerate(zip(shape, strides, strict=True))
        ]
        # Both at once cost less than the size or the stride of one axis.
        return " and ".join([f"len(sizes := {name}.shape) == {len(shape)} and (steps := {name}.stride())", *axes])


def is_plain(tensor: Any) -> bool:
    """Return whether a kernel may read the tensor's memory as float32: no subclass, no lazily negated view."""
    if type(tensor) not in PLAIN or tensor.dtype is not torch.float32 or tensor.is_neg():
        return False
    return device_type(tensor.device) == "cpu"


def checked_kernels(library: ctypes.CDLL, source: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """Yield the name and the checked call of every kernel that the C source declares."""
    enums = re.findall(r"enum \{(.*?)\}", source)
    constants = {name: int(value) for name, value in _CONSTANT.findall(" ".join(enums))}
    scope = {
        **constants,
        "is_plain": is_plain,
        "ceil_div": _ceil_div,
        "pieces": lambda n: _ceil_div(n, constants["ROWS"]),
    }
    for name, declared, required in _KERNEL.findall(source):
        parameters = [
            _Parameter("array" if star else kind, own, shape, strides, bool(optional))
            for kind, star, own, shape, strides, optional in _PARAMETER.findall(declared)
        ]
        yield name, _checked_call(name, library[name], parameters, required, scope)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _checked_call(
    kernel: str, function: Any, parameters: list[_Parameter], required: str, scope: dict[str, Any]
) -> Callable[..., None]:
    """Return a call of the function that first checks the number, the types and the extents of its arguments."""
    function.argtypes = [*(_TYPES[parameter.kind] for parameter in parameters), ctypes.c_int]
    function.restype = None
    names = [parameter.name for parameter in parameters]
    by_kind = sorted(parameters, key=lambda parameter: parameter.kind == "array")  # extents are known before arrays
    conditions = [condition for parameter in by_kind for condition in parameter.conditions]
    first_array = next(index for index, condition in enumerate(conditions) if "is_plain" in condition.expression)
    conditions[first_array:first_array] = [
        _Condition(f"({text})", ValueError, None, text) for text in filter(None, required.split(", "))
    ]

    def compiled(expression: str) -> Callable[..., Any]:
        # The text is that of the C source, which is compiled and run as well.
        return eval(f"lambda {', '.join(names)}: {expression}", scope)

    def refuse(arguments: tuple[Any, ...]) -> Exception:
        values = dict(zip(names, arguments, strict=True))
        for condition in conditions:
            if not compiled(condition.expression)(*arguments):
                return condition.error(f"kernel {kernel}: {_explain(condition, values)}")
        return RuntimeError(f"kernel {kernel}: its arguments changed during the call")

    addresses = (
        name
        if kind != "array"
        else f"None if {name} is None else {name}.data_ptr()"
        if optional
        else f"{name}.data_ptr()"
        for kind, name, _, _, optional in parameters
    )
    all_hold = " and ".join(condition.expression for condition in conditions)
    passed = compiled(f"({', '.join(addresses)}, ) if {all_hold} else None")
    required_array = next(
        index for index, (kind, *_, optional) in enumerate(parameters) if kind == "array" and not optional
    )

    def call(*arguments: Tensor | float | None) -> None:
        if len(arguments) != len(names):
            raise TypeError(f"kernel {kernel}: {len(arguments)} arguments, expected {len(names)}: {', '.join(names)}")
        if (values := passed(*arguments)) is None:
            raise refuse(arguments)
        array = arguments[required_array]
        if isinstance(array, Tensor) and array.is_meta:
            return  # a dry run: there are no values
        function(*values, torch.get_num_threads())

    return call


def _explain(condition: _Condition, values: dict[str, Any]) -> str:
    numbers = ", ".join(f"{name} = {value}" for name, value in values.items() if isinstance(value, int))
    if condition.parameter is None:
        return f"expected {condition.expected}, got {numbers}"
    value = values[condition.parameter]
    if not isinstance(value, Tensor):
        found = f"{condition.parameter} = {value} ({type(value).__name__})"
    elif condition.error is TypeError:
        found = f"{condition.parameter} is a {type(value).__name__} of {value.dtype} on {value.device}"
    else:
        found = f"{condition.parameter} has shape {list(value.shape)} and strides {list(value.stride())}"
        return f"{found}, expected {condition.expected} with {numbers}"
    return f"{found}, expected {condition.expected}"
