"""A fit in the terminal: its verdict, its parameters, predictions and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hybridtron.reporting.numbers import interval, significant

if TYPE_CHECKING:
    from hybridtron.laws.result import Fit


def show_fit(result: Fit, console: Console) -> None:
    """Print the fit; one sentence, parameter, prediction or warning a line."""
    lines = [*result.verdict]
    width = max([8, *map(len, result.parameters)])
    for name, value in result.parameters.items():
        low, high = (result.intervals or {}).get(name, (None, None))
        lines.append(
            f"  {name:{width}} {value:<12.6g}" + (f" 95 %: {low:.5g} to {high:.5g}" if low is not None else "")
        )
    lines += ["  at " + _predicted(point) for point in result.predictions]
    lines += [f"warning: {warning}" for warning in result.warnings]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _predicted(point: Mapping[str, Any]) -> str:
    """Return the numbers of a prediction, each with its interval where it has one: N 7e+10, loss 1.97 (1.95 to 2)."""
    words = []
    for name, value in point.items():
        if isinstance(value, str):
            words.append(value)
        elif isinstance(value, float):
            span = point.get(f"{name}_interval")
            words.append(f"{name} {significant(value)}" + (f" ({interval(span)})" if span else ""))
    return ", ".join(words)
