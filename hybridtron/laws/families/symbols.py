"""The symbols of points that a law of one formula predicts at: N=7e9, or n_params=7e9."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hybridtron.errors import UserError
from hybridtron.laws.data.ranges import broken_range

SYMBOLS: dict[str, tuple[str, ...]] = {  # of predictions -> the columns that they set, as far as the law reads them
    "N": ("n_params",),
    "D": ("tokens",),
    "C": ("flops",),
    "U": ("unique_tokens",),
    "r": ("ratio",),
    "G": ("granularity",),
    "active": ("active_params",),
    "P": ("weight_bits", "activation_bits", "kv_bits"),
}


def columns_at(
    law: str, columns: Sequence[str], at_most: Mapping[str, str], point: Mapping[str, float]
) -> dict[str, float]:
    """Return the columns of a point that is given by their names or symbols.

    Raises UserError for one too many or too few, and for values that are impossible.
    """
    symbols = {column: symbol for symbol, known in SYMBOLS.items() for column in known}
    at: dict[str, float] = {}
    called: dict[str, str] = {}
    text = ",".join(f"{given}={value:g}" for given, value in point.items())
    expected = ", ".join(dict.fromkeys(_symbol(symbols.get(column, column), columns) for column in columns))
    for given, value in point.items():
        named = [column for column in SYMBOLS.get(given, (given,)) if column in columns and column not in at]
        if not named:
            raise UserError(f"predict = {text}: {law} does not know {given!r} beside the others; expected {expected}")
        at |= dict.fromkeys(named, value)
        called |= dict.fromkeys(named, given)
    given_alone = {symbols.get(column) for column in point}  # a symbol of which some columns were given by name
    lacking = [column for column in columns if column not in at]
    if missing := [c if symbols.get(c, c) in given_alone else symbols.get(c, c) for c in lacking]:
        raise UserError(f"predict = {text}: {', '.join(dict.fromkeys(missing))} missing; {law} needs {expected}")
    if (broken := broken_range(at, at_most, called)) is not None:
        raise UserError(f"predict = {text}: {broken}")
    return at


def _symbol(name: str, columns: Sequence[str]) -> str:
    """Return a symbol of points, with the columns that it sets where it may set several."""
    known = SYMBOLS.get(name, ())
    return name if len(known) < 2 else f"{name} ({', '.join(column for column in known if column in columns)})"
