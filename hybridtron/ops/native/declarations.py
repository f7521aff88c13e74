"""Calls of the compiled kernels, each checked against the declaration of the kernel in the C source (see common.h).

A kernel is handed bare addresses: what is not refused here would be read or written outside the memory of a tensor.
A call costs one expression, compiled once for each kernel; only where that is false is the reason looked for.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
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
_ENUM = re.compile(r"enum \{(.*?)\}", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_LARGEST = 1 << 60  # integer: kernels add two without overflow; the tensors that they index bound their products
_TYPES = {"float*": ctypes.c_void_p, "long*": ctypes.c_void_p, "long": ctypes.c_long, "float": ctypes.c_float}
PLAIN = (Tensor, nn.Parameter)

PreparedCall = Callable[[], object]


class CheckedKernel:
    """A kernel, called now or prepared."""

    def __init__(self, call: Callable[..., None], prepare: Callable[..., PreparedCall]) -> None:
        self.call = call
        self.prepare = prepare  # checks arguments now and returns a call of them for later; it holds their memory

    def __call__(self, *arguments: Tensor | float | None) -> None:
        self.call(*arguments)


class _Condition(NamedTuple):
    """What must hold of the arguments, as a Python expression, and the error where it does not."""

    expression: str
    error: type[Exception]
    parameter: str | None
    expected: str


class _Parameter(NamedTuple):
    kind: str  # "long" or "float", or "long*" or "float*" with a shape
    name: str
    shape: str
    strides: str  # those of all axes but the last, or "" where the array is contiguous
    optional: bool

    @property
    def is_array(self) -> bool:
        return self.kind.endswith("*")

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
            check, dtype = ("is_plain", "float32") if self.kind == "float*" else ("is_plain_int64", "int64")
            yield _Condition(f"({unless}{check}({name}))", TypeError, name, f"a plain {dtype} tensor on the CPU")
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


def is_plain(tensor: Any, dtype: torch.dtype = torch.float32) -> bool:
    """Return whether a kernel may read the tensor's memory as `dtype`: no subclass, no lazily negated view."""
    if type(tensor) not in PLAIN or tensor.dtype is not dtype or tensor.is_neg():
        return False
    return device_type(tensor.device) == "cpu"


def modes_ignored() -> AbstractContextManager[None]:
    """Return a block that reads attributes of tensors past torch-function modes; nothing in it may make a tensor.

    Under such a mode, as when megatron-core trains on a CPU, each attribute that is read runs Python for a microsecond.
    """
    return torch._C.DisableTorchFunction()


def checked_kernels(library: ctypes.CDLL, source: str) -> Iterator[tuple[str, CheckedKernel]]:
    """Yield the name and the checked call of every kernel that the C source declares."""
    constants = constants_of(source)
    scope = {
        **constants,
        "is_plain": is_plain,
        "is_plain_int64": partial(is_plain, dtype=torch.int64),
        "ceil_div": _ceil_div,
        "pieces": lambda n: _ceil_div(n, constants["ROWS"]),
    }
    for name, declared, required in _KERNEL.findall(source):
        parameters = [
            _Parameter(kind + star, own, shape, strides, bool(optional))
            for kind, star, own, shape, strides, optional in _PARAMETER.findall(declared)
        ]
        yield name, _checked_call(name, library[name], parameters, required, scope)


def constants_of(source: str) -> dict[str, int]:
    """Return the constants of all enums of a C source. Raises ValueError for one that is not `NAME = digits`."""
    found = {}
    for body in _ENUM.findall(_COMMENT.sub("", source)):
        for constant in filter(None, map(str.strip, body.split(","))):
            name, _, value = constant.partition(" = ")
            if not (value.isascii() and value.isdigit()):
                raise ValueError(f"constant {constant} of the kernels: expected NAME = digits")
            found[name] = int(value)
    return found


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _checked_call(
    kernel: str, function: Any, parameters: list[_Parameter], required: str, scope: dict[str, Any]
) -> CheckedKernel:
    """Return calls of the function that first check the number, the types and the extents of its arguments."""
    function.argtypes = [*(_TYPES[parameter.kind] for parameter in parameters), ctypes.c_int]
    function.restype = None
    names = [parameter.name for parameter in parameters]
    by_kind = sorted(parameters, key=lambda parameter: parameter.is_array)  # extents are known before arrays
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
        if not parameter.is_array
        else f"None if {name} is None else {name}.data_ptr()"
        if parameter.optional
        else f"{name}.data_ptr()"
        for name, parameter in zip(names, parameters, strict=True)
    )
    all_hold = " and ".join(condition.expression for condition in conditions)
    passed = compiled(f"({', '.join(addresses)}, ) if {all_hold} else None")
    required_array = next(
        index for index, parameter in enumerate(parameters) if parameter.is_array and not parameter.optional
    )

    def check(arguments: tuple[Tensor | float | None, ...]) -> tuple[Any, ...]:
        if len(arguments) != len(names):
            raise TypeError(f"kernel {kernel}: {len(arguments)} arguments, expected {len(names)}: {', '.join(names)}")
        if (values := passed(*arguments)) is None:
            raise refuse(arguments)
        return values

    def call(*arguments: Tensor | float | None) -> None:
        with modes_ignored():
            values, array = check(arguments), arguments[required_array]
            if isinstance(array, Tensor) and array.is_meta:
                return  # a dry run: there are no values
        function(*values, torch.get_num_threads())

    def prepare(*arguments: Tensor | float | None) -> PreparedCall:
        prepared = partial(function, *check(arguments), torch.get_num_threads())
        prepared.__dict__["arguments"] = arguments  # keeps their memory
        return prepared

    return CheckedKernel(call, prepare)


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
