"""What torch.compile does not look into, and calls as it is: kernels, messages, and what depends on values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def _call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return function(*arguments, **named)


_call_uncompiled = _call


def opaque(function: Function) -> Function:
    """Have torch.compile call the function as it is: what it compiles ends before the call and begins again after."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        return _call_uncompiled(function, *arguments, **named)

    return called  # type: ignore[return-value]


def keep_opaque() -> None:
    """Make `opaque` hold from now on; until something is compiled, torch's compiler need not be imported for it."""
    from torch._dynamo.decorators import skip

    global _call_uncompiled
    _call_uncompiled = torch.compiler.disable(_call)
    skip(opaque(_call))  # the code of `called`, which would be compiled anew for each function
