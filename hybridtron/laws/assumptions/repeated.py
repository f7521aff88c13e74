"""Data seen more than once, which a law that counts tokens takes for new."""

from __future__ import annotations

import numpy as np

from hybridtron.laws.assumptions.names import named, quoted, reads
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings

ROUNDING = 1.01  # tokens of one epoch, rounded up to whole steps


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of rows that see their data more than once."""
    if not {"tokens", "flops"} & reads(law) or "unique_tokens" in reads(law):
        return []
    counted, seen = epochs(runs)
    column = counted
    again = seen > ROUNDING
    if not again.any():
        return []
    rounded = int(((seen > 1) & ~again).sum())
    by_epochs, lost = "epochs" in column.lower(), ""
    if rounded and column == "unique_tokens":
        column, by_epochs = "epochs", True  # which follows from it
    elif rounded and not by_epochs:
        lost = f", which leaves out {rounded} of one epoch and up to {100 * (ROUNDING - 1):.0f} % more"
    keep = quoted(column, "<=", ROUNDING if rounded else 1) if by_epochs else quoted(column, ">=", "tokens") + lost
    return [
        f"repeated data: {again.sum()} of {len(runs)} rows see their data more than once (up to {seen.max():.3g} "
        f"times, by column {counted}), and the law counts every token as new; fit the law data-repetition, or keep "
        f"single epochs with {keep}"
    ]


def epochs(runs: Runs) -> tuple[str, Array]:
    """Return the column that tells how often a row sees its data, and how often that is, [n]; "" and ones if none."""
    with np.errstate(all="ignore"):
        for name in named(runs, [{"unique", "tokens"}]):
            if "tokens" in runs and runs["tokens"].dtype != object:
                return name, np.nan_to_num(runs["tokens"] / runs[name], nan=1.0, posinf=1.0)
        for name in named(runs, [{"epochs"}]):
            return name, np.nan_to_num(runs[name], nan=1.0)
    return "", np.ones(len(runs))
