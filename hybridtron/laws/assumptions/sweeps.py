"""Sweeps of the learning rate or the batch size at one size and length, whose worse runs a law of size is not about."""

from __future__ import annotations

import numpy as np

from hybridtron.laws.assumptions.names import SWEPT, listed, named, takes_one_loss_a_size
from hybridtron.laws.data.cells import cells
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.law import Law, Settings

FEWEST_SHARE = 0.1  # of the rows; one run repeated with another learning rate is no sweep


def find(law: Law, runs: Runs, settings: Settings) -> list[str]:
    """Tell of cells of equal n_params and tokens whose rows differ in learning rate or batch size."""
    if not takes_one_loss_a_size(law, runs):
        return []
    cell = cells(runs)
    swept = [name for name in named(runs, SWEPT) if _differing(runs[name], cell).any()]
    if not swept:
        return []
    rows = np.logical_or.reduce([_differing(runs[name], cell) for name in swept])
    if rows.sum() < max(3, FEWEST_SHARE * len(runs)):
        return []
    return [
        f"sweep: {rows.sum()} of {len(runs)} rows lie in {len(np.unique(cell[rows]))} cells of equal n_params and "
        f"tokens and differ in {listed(swept)}; the law is about the best of each: keep it with --keep-best"
    ]


def _differing(values: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Return the rows of cells within which the values differ, [n]."""
    pairs = np.unique(np.stack([cell, np.unique(values, return_inverse=True)[1]]), axis=1)
    return np.bincount(pairs[0], minlength=cell.max() + 1)[cell] > 1
