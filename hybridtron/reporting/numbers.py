"""Numbers as text, for tables, sentences, pictures and the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from markupsafe import Markup

NONE = "–"  # stands for a number that is missing
DECIMALS, MOST_DECIMALS = 4, 8
SMALL_SPREAD = 5e-3  # numbers that differ by less than this get more decimal places
_SHORTEST_SECONDS = 0.01
_SHORT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_SI_UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def short_number(value: float) -> str:
    """Return a number with a suffix or a power of ten: 70M, 1.4T, 6e18, 0.021."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return f"{value:g}"
    if size >= 1e15 or size < 1e-3:
        return scientific(value)
    for scale, suffix in _SHORT_UNITS:
        if size >= 0.9995 * scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.4g}"


def scientific(value: float) -> str:
    """Return a number as digits and a power of ten, as in 6e18."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def significant(value: float) -> str:
    """Return a number with four significant digits."""
    return f"{value:.4g}"


def interval(ends: Sequence[float]) -> str:
    """Return the ends of an interval with four significant digits: 1.77 to 1.87."""
    return " to ".join(map(significant, ends))


def grouped(value: float) -> str:
    """Return a number without a fraction, in groups of three digits."""
    return f"{round(value):,}".replace("-", "−")


def decimal(value: float | None, digits: int) -> str:
    """Return a number with so many decimal places."""
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", "−")


def decimals(values: Iterable[float | None]) -> int:
    """Return the number of decimal places at which these numbers differ."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    spread = max(known, default=0.0) - min(known, default=0.0)
    if 0 < spread < SMALL_SPREAD:
        return min(MOST_DECIMALS, 2 - math.floor(math.log10(spread)))
    return DECIMALS if max(map(abs, known), default=0.0) < 1000 else 1


def si(value: float) -> str:
    """Return a number with four digits and a unit prefix: 1.234 G."""
    return next((f"{value / scale:.4g} {unit}" for scale, unit in _SI_UNITS if value >= scale), f"{value:.4g}")


def byte_size(size: float) -> str:
    """Return a number of bytes in the unit that suits it: 512 B, 1.50 GiB."""
    unit = 0
    while size >= 1024 and unit < len(_BYTE_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.0f} {_BYTE_UNITS[unit]}" if unit == 0 else f"{size:.2f} {_BYTE_UNITS[unit]}"


def plural(count: int, noun: str, nouns: str = "") -> str:
    """Return a count with its noun: 1 layer, 2,000 steps; `nouns` where that takes more than an s."""
    return f"{count:,} {noun if count == 1 else nouns or f'{noun}s'}"


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 0.03 s, 12 s, 4.2 min, 3.1 h."""
    if seconds < _SHORTEST_SECONDS:
        return f"under {_SHORTEST_SECONDS} s"
    for least, length, unit in ((3600, 3600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def html_number(value: Any, digits: int = 4) -> str:
    """Return a value for a page: grouped digits, a power of ten when very large or small, a dash when missing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) < 10**7:
        return f"{value:,}"
    if not isinstance(value, int | float):
        return str(value)
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    if value and not 1e-3 <= abs(value) < 1e7:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return Markup(f"{float(mantissa):g} × 10<sup>{int(exponent)}</sup>".replace("-", "−"))
    return f"{float(f'{value:.{digits}g}'):,.10g}".replace("-", "−")
