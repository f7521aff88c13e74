"""Parameters of a formula that the user holds at a value instead of fitting them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError

FIX = (None, 'parameters held at a value instead of fitted, such as "E=1.87,alpha=0.35"')


def read_fixed(given: str | Mapping[str, Any] | None, parameters: Collection[str], law: str) -> dict[str, float]:
    """Return parameter to value from a mapping or a text such as `E=1.87,alpha=0.35`.

    Raises UserError for an unknown parameter, a value that is no finite number, and where nothing is left to fit.
    """
    try:
        if not isinstance(given, str | Mapping | None):
            raise ValueError
        text = [one.split("=") for one in given.split(",")] if isinstance(given, str) else []
        pairs = given.items() if isinstance(given, Mapping) else text
        fixed = {str(name).strip(): float(value) for name, value in pairs}
        if len(fixed) < len(pairs):
            raise ValueError  # a name twice
    except (AttributeError, ValueError):
        raise UserError(f"fix = {given}: expected NAME=NUMBER,NAME=NUMBER, each name once") from None
    for name, value in fixed.items():
        if name not in parameters:
            raise UserError(f"fix = {given}: {law} has no parameter {name!r}; expected {one_of(name, parameters)}")
        if not math.isfinite(value):
            raise UserError(f"fix = {given}: {name} is {value:g}; expected a finite number")
    if set(fixed) == set(parameters):
        raise UserError(f"fix = {given}: every parameter of {law} is held; expected at least one to fit")
    return fixed
