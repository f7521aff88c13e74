"""What values a column can hold, by itself and beside another column."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs
from hybridtron.reporting.numbers import plural

Range = tuple[Callable[[np.ndarray], np.ndarray], str]  # whether each value is possible; what is expected, in words
ROUNDED = 1.01  # whole steps, and sizes written with three digits, put a column this far above its limit at most

_COUNTS = ("width", "depth", "experts")  # parameters and tokens may be written in billions, which a warning asks
RANGES: dict[str, Range] = {
    "score": (np.isfinite, "a finite number"),
    "ratio": (lambda ratio: (ratio >= 0) & (ratio <= 1), "a share from 0 to 1"),
    "error": (lambda error: (error > 0) & (error <= 1), "a share above 0 and up to 1 (is it in per cent?)"),
    **dict.fromkeys(_COUNTS, (lambda count: count >= 1, "a finite number of at least 1")),
}
_ABOVE_ZERO: Range = (lambda values: values > 0, "a finite number above zero")
_SQUARED: Range = (
    lambda values: (values == 0) | ((np.abs(values) >= 1e-100) & (np.abs(values) <= 1e100)),
    "a size from 1e-100 to 1e100, whose square is a number",
)


def check_ranges(runs: Runs, names: Sequence[str], at_most: Mapping[str, str]) -> None:
    """Check that these columns hold what they can, and that none lies above the column that `at_most` gives for it.

    Raises UserError that names the first broken row by its line.
    """
    for name in names:
        runs.require(name, *RANGES.get(name, _ABOVE_ZERO))
        runs.require(name, *_SQUARED)
    for name, limit in at_most.items():
        if name not in runs or limit not in runs:
            continue
        above = runs[name] > ROUNDED * runs[limit]
        if above.any():
            row = int(np.argmax(above))
            others = int(above.sum()) - 1
            more = f" (and {plural(others, 'more row')} like it)" if others else ""
            raise UserError(
                f"{runs.locate(row)}: {name} is {runs[name][row]:g} and {limit} {runs[limit][row]:g}; expected {name} "
                f"of at most {limit}{more}"
            )


def broken_range(
    values: Mapping[str, float], at_most: Mapping[str, str], called: Mapping[str, str]
) -> str | None:  # fmt: skip
    """Return what is wrong with a point, given by columns and as they are `called`, or None."""
    for name, value in values.items():
        for possible, expected in (RANGES.get(name, _ABOVE_ZERO), _SQUARED):
            if not (np.isfinite(value) and possible(np.asarray(value))):
                return f"{called[name]} is {value:g}; expected {expected}"
    for name, limit in at_most.items():
        if values[name] > ROUNDED * values[limit]:
            below, above = called[name], called[limit]
            return f"{below} is {values[name]:g} and {above} {values[limit]:g}; expected {below} of at most {above}"
    return None
