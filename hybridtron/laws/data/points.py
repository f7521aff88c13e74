"""Points that the user asks a law to predict, and numbers as people write them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from hybridtron.errors import UserError

FLOPS_PER_PARAMETER_TOKEN = 6.0  # training FLOPs of a dense model, C = 6 N D (Kaplan et al. 2020, section 2.1)
# parameters N, tokens D, training FLOPs C and tokens per parameter M: log = first * log N + second * log D + third
_LOGARITHMS = {"N": (1, 0, 0), "D": (0, 1, 0), "C": (1, 1, np.log(FLOPS_PER_PARAMETER_TOKEN)), "M": (-1, 1, 0)}
MAY_BE_ZERO = ("r", "ratio")  # shares, from a hybrid without attention to one of attention alone
_UNITS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
_WITH_UNIT = re.compile(r"(.*[\d.]) ?([KMBGT])", re.IGNORECASE)


def parse_number(text: str) -> float:
    """Return the number of a text such as 1e9, 308.6M or 7B (K, M, B or G, T); raises ValueError."""
    number, unit = match.groups() if (match := _WITH_UNIT.fullmatch(text.strip())) else (text, "")
    return float(f"{float(number) * _UNITS[unit.upper()]:.15g}")


def read_points(predict: Any) -> list[dict[str, float]]:
    """Return points from a mapping, a text such as `N=7B,D=1.4T`, or a list of these.

    Raises UserError for anything else, and for values that are no finite numbers above zero.
    """
    return [_read_point(point) for point in ([predict] if isinstance(predict, str | Mapping) else predict)]


def _read_point(point: Any) -> dict[str, float]:
    try:
        pairs = point.items() if isinstance(point, Mapping) else [pair.split("=") for pair in point.split(",")]
        values = {str(name).strip(): parse_number(str(value)) for name, value in pairs}
    except (AttributeError, ValueError):
        raise UserError(f"predict = {point}: expected NAME=NUMBER,NAME=NUMBER, such as N=7e9,D=140B") from None
    for name, value in values.items():
        if not (0 < value < np.inf or (value == 0 and name in MAY_BE_ZERO)):
            raise UserError(f"predict = {point}: {name} is {value:g}; expected a finite number above zero")
    return values


def complete(point: Mapping[str, float], law: str) -> dict[str, float]:
    """Complete a point to N, D, C and M from any two of them (C = 6 N D, M = D / N), or by C alone.

    Raises UserError for an unknown name and for a point that is not determined.
    """
    text = ",".join(f"{name}={value:g}" for name, value in point.items())
    for name in point:
        if name not in _LOGARITHMS:
            raise UserError(f"predict = {text}: {law} does not know {name!r}; expected two of N, D, C, M, or C alone")
    known = dict(point)
    if set(known) == {"C"}:
        return known
    if len(known) != 2:
        raise UserError(f"predict = {text}: expected two of N, D, C, M, or C alone")
    equations = np.array([_LOGARITHMS[name] for name in known])
    n, d = np.exp(np.linalg.solve(equations[:, :2], np.log(list(known.values())) - equations[:, 2])).tolist()
    n, d = known.get("N", n), known.get("D", d)
    return {"N": n, "D": d, "C": FLOPS_PER_PARAMETER_TOKEN * n * d, "M": d / n}
