"""Data seen more than once, which a law that counts tokens takes for new."""

from __future__ import annotations

import numpy as np

from hybridtron.laws.assumptions.names import named, quoted, reads
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Law, Settings
from hybridtron.laws.fitting.optimize import Array

ROUNDING = 1.01  # tokens of one epoch, rounded up to whole steps


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of rows that see their data more than once."""
    if not {"tokens", "flops"} & reads(law) or "unique_tokens" in reads(law):
        return []
    column, seen = epochs(runs)
    again = seen > ROUNDING
    if not again.any():
        return []
    keep = quoted(column, "<=", 1) if column and "epochs" in column.lower() else quoted(column, ">=", "tokens")
    return [
        f"repeated data: {again.sum()} of {len(runs)} rows see their data more than once (up to {seen.max():.3g} "
        f"times, by column {column}), and the law counts every token as new; fit the law data-repetition, or keep "
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
