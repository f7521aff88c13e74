"""Cells of a table: rows of one model and equal tokens, which differ in how they were trained."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs

SAME_TOKENS = 0.01  # whole steps of another batch size move the tokens of a run by less
_APART = (  # rows that differ here are of different cells
    "arch", "unique_tokens", "experts", "active_params", "granularity", "ratio", "weight_bits", "activation_bits",
    "kv_bits",
)  # fmt: skip
_OF_SHAPE = ("width", "depth", "total_state")  # and here, for a law that reads them


def cells(runs: Runs, read: Collection[str] = ()) -> NDArray[np.intp]:
    """Number the cell of each row, [n]: equal n_params (arch, unique_tokens), and tokens that agree within 1 %.

    For a law that reads width, depth or state, models of equal size that differ there are of different cells.
    Raises UserError for runs without n_params or tokens.
    """
    tokens = runs["tokens"]
    apart = (*_APART, *(name for name in _OF_SHAPE if name in read))
    keys = list(zip(runs["n_params"].tolist(), *(runs[name].tolist() for name in apart if name in runs), strict=True))
    first: dict[tuple[object, ...], tuple[float, int]] = {}  # by key: tokens and number of its latest cell
    labels = np.empty(len(runs), dtype=np.intp)
    count = 0
    for row in np.argsort(tokens, kind="stable"):
        smallest, label = first.get(keys[row], (0.0, -1))
        if tokens[row] > (1 + SAME_TOKENS) * smallest:
            smallest, label = float(tokens[row]), count
            first[keys[row]] = (smallest, label)
            count += 1
        labels[row] = label
    return labels


def best_of_cells(runs: Runs, read: Collection[str] = ()) -> Runs:
    """Keep the row of the lowest loss of each cell, in the order of the table; a note says how many there were.

    `read` names the columns that the law reads.

    Raises UserError for runs without n_params, tokens or loss.
    """
    for name in ("n_params", "tokens", "loss"):
        if name not in runs or runs[name].dtype == object:
            raise UserError(f"{runs.source}: keep_best needs n_params, tokens and loss; there is no number {name}")
    labels = cells(runs, read)
    order = np.lexsort((runs["loss"], labels))
    best = order[np.unique(labels[order], return_index=True)[1]]
    alike = ", ".join(("n_params", *(name for name in _OF_SHAPE if name in read)))
    note = f"the lowest loss of each cell of equal {alike} and tokens is kept: {len(best)} of {len(runs)} rows"
    return replace(runs.take(np.sort(best)), notes=(*runs.notes, note))
