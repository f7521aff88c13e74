"""Runs that diverged: a loss far above that of several smaller runs of fewer tokens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hybridtron.laws.assumptions import pooled, repeated
from hybridtron.laws.assumptions.names import quoted, reads, takes_one_loss_a_size
from hybridtron.laws.data.cells import cells
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.fitting.optimize.problem import Array
from hybridtron.laws.law import Law, Settings

ABOVE = 1.1  # times the loss of runs that are no larger and no longer
FEWEST = 3  # of those; a single one may itself be too low
_SIZES = {"n_params", "tokens", "flops", "M", "width", "depth", "unique_tokens"}  # rise with parameters and tokens
_COMPARED = 2000  # rows that each row is compared with
_AT_ONCE = 2_000_000  # comparisons held at once


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of rows whose loss lies far above that of rows of no more parameters and no more tokens."""
    if not takes_one_loss_a_size(law, runs):
        return []
    others = [name for name in reads(law) - _SIZES if name in runs and name in pooled.COORDINATES]
    bad = diverged(runs, others + pooled.parted(law, runs, settings) + pooled.explaining(law, runs, settings))
    if not bad.any():
        return []
    loss, lines = runs["loss"], [int(line) for line in runs.lines[bad]]
    shown = ", ".join(map(str, lines[:5])) + (", ..." if len(lines) > 5 else "")
    highest, lowest = float(loss[~bad].max()), float(loss[bad].min())
    advice = "mark them in a column named outlier, which the report then leaves out for comparison"
    if lowest > highest:
        advice = f"leave them out with {quoted('loss', '<=', f'{(highest + lowest) / 2:.4g}')}"
    return [
        f"diverged: {bad.sum()} of {len(runs)} rows have a loss more than {100 * (ABOVE - 1):.0f} % above that of "
        f"several runs no larger and no longer ({runs.place} {shown}; loss {lowest:.4g} to {loss[bad].max():.4g}); "
        + advice
    ]


def diverged(runs: Runs, apart: list[str]) -> NDArray[np.bool_]:
    """Mark the rows that diverged, [n].

    Compared are the best of each cell (the worse of a sweep are told of elsewhere) among rows that see their data once
    and agree in the columns `apart`.
    """
    found = np.zeros(len(runs), dtype=bool)
    once = np.flatnonzero(repeated.epochs(runs)[1] <= repeated.ROUNDING)
    if not len(once):
        return found
    cell, loss = cells(runs), runs["loss"]
    order = once[np.lexsort((loss[once], cell[once]))]
    best = order[np.unique(cell[order], return_index=True)[1]]
    stratum = np.zeros(len(runs), dtype=np.intp)
    for name in apart:
        label = runs.labels(name)
        stratum = np.unique(stratum * (label.max() + 1) + label, return_inverse=True)[1]
    for label in np.unique(stratum[best]):
        rows = best[stratum[best] == label]
        found[rows] = _above_smaller(runs["n_params"][rows], runs["tokens"][rows], loss[rows])
    return found


def _above_smaller(n_params: Array, tokens: Array, loss: Array) -> NDArray[np.bool_]:
    """Mark the rows far above `FEWEST` rows or more of no more parameters and tokens, [n]."""
    some = np.unique(np.linspace(0, len(loss) - 1, min(len(loss), _COMPARED)).astype(int))
    found = np.zeros(len(loss), dtype=bool)
    for rows in np.array_split(np.arange(len(loss)), 1 + len(loss) * len(some) // _AT_ONCE):
        smaller = (n_params[some] <= n_params[rows, None]) & (tokens[some] <= tokens[rows, None])  # [rows, some]
        found[rows] = (smaller & (loss[some] * ABOVE < loss[rows, None])).sum(axis=1) >= FEWEST
    return found
