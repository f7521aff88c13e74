"""The table of layers that `hybridtron efficiency --by-block` writes, read again. Free of torch."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.files import read_plain

ENDS = "embedding and output"  # the row of what stands before and after the layers
PASSES = "forward_backward_ms"  # a training step without the optimizer


@dataclass(frozen=True)
class LayerRow:
    """What one layer takes at one length and batch size: `values` by column."""

    layer: str
    length: int
    batch: int
    values: dict[str, float]


def read_layer_table(place: str, path: Path, columns: Sequence[str], first_of: Sequence[str] = ()) -> list[LayerRow]:
    """Read some columns of layers.csv, which `place` names in errors, and the first of `first_of` that is there.

    Raises UserError for what is no such table.
    """
    expected = "expected layers.csv of hybridtron efficiency"
    try:
        rows = list(csv.DictReader(read_plain(path).decode().splitlines()))
    except (UnicodeDecodeError, csv.Error):
        raise UserError(f"{place}: is no text; {expected}") from None
    there = [name for name in first_of if rows and name in rows[0]]
    columns = [*(there[:1] or first_of[-1:]), *columns]
    for column in ("layer", "length", "batch", *columns):
        if not rows or column not in rows[0]:
            raise UserError(f"{place}: has no column {column}; {expected}")
    try:
        return [
            LayerRow(row["layer"], int(row["length"]), int(row["batch"]), {name: float(row[name]) for name in columns})
            for row in rows
        ]
    except (TypeError, ValueError):
        raise UserError(f"{place}: holds a word in place of a number; {expected}") from None
