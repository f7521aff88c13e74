"""Numbers as a reader says them."""

from __future__ import annotations

import math

_LEAST_SECONDS = 0.01
_PREFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))


def short_number(value: float) -> str:
    """A number as a reader says it: 70M, 1.4T, 6e18, 0.021."""
    size = abs(value)
    if size == 0 or not math.isfinite(value):
        return f"{value:g}"
    if size >= 1e15 or size < 1e-3:
        return scientific(value)
    for scale, prefix in _PREFIXES:
        if size >= 0.9995 * scale:
            return f"{value / scale:.3g}{prefix}"
    return f"{value:.4g}"


def scientific(value: float) -> str:
    """As FLOPs are said: 6e18."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def plural(count: int, noun: str) -> str:
    """A count with its noun: 1 layer, 2,000 steps."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """Such as 0.03 s, 12 s, 4.2 min or 3.1 h."""
    if seconds < _LEAST_SECONDS:
        return f"under {_LEAST_SECONDS} s"
    for least, length, unit in ((3600, 3600, "h"), (90, 60, "min")):
        if seconds >= least:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
