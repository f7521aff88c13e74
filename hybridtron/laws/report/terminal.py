"""A fit in the terminal: its verdict, its parameters, predictions and warnings."""

from __future__ import annotations

from rich.console import Console

from hybridtron.laws.families.law import Fit
from hybridtron.laws.families.sentences import predicted
from hybridtron.reporting.shown import show


@show.register(Fit)
def show_fit(result: Fit, console: Console) -> None:
    """Print the fit; one sentence, parameter, prediction or warning a line."""
    lines = [*result.verdict]
    for name, value in result.parameters.items():
        low, high = (result.intervals or {}).get(name, (None, None))
        lines.append(f"  {name:8} {value:<12.6g}" + (f" 95 %: {low:.5g} to {high:.5g}" if low is not None else ""))
    lines += ["  at " + predicted(point) for point in result.predictions]
    lines += [f"warning: {warning}" for warning in result.warnings]
    console.print("\n".join(lines), markup=False, soft_wrap=True)
