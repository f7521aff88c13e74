"""Training runs as columns of equal length, which laws are fitted to.

Canonical columns, where a source has them: n_params, tokens, flops, loss (nats per token), M (tokens per parameter),
total_state (elements), score, error (in 0..1), group, arch. Other columns keep the name that the source gives them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError


@dataclass(frozen=True)
class Runs:
    """A table of n rows. Numbers are float64 arrays, text is an array of str objects; nothing is changed in place."""

    columns: dict[str, np.ndarray]  # name -> [n]
    lines: np.ndarray  # 1-based line of each row in its source, [n]
    source: str
    place: str = "line"  # what `lines` counts: line of a text file, row of a table, run of a folder

    @classmethod
    def of(cls, source: str = "data", **columns: Any) -> Runs:
        """Build runs from arrays or lists of equal length, lines counted from 1."""
        arrays = {name: _column(values) for name, values in columns.items()}
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1:
            raise UserError(f"{source}: columns of lengths {sorted(sizes)}; expected one length for all")
        return cls(arrays, np.arange(1, sizes.pop() + 1), source)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one column, [n]; raises UserError with the nearest names when there is none of this name."""
        if name not in self.columns:
            raise UserError(f"{self.source}: no column {name!r}; expected {one_of(name, self.columns)}")
        return self.columns[name]

    def take(self, rows: np.ndarray) -> Runs:
        """Return the rows of a boolean mask or of an index array, in its order."""
        rows = np.asarray(rows)
        columns = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])

    def where(self, column: str, value: object) -> Runs:
        """Return the rows whose column equals the value: as a number where the column is numeric, else as text."""
        values = self[column]
        if values.dtype == object:
            return self.take(values == str(value))
        try:
            return self.take(values == float(str(value)))
        except ValueError:
            raise UserError(f"{self.source}: column {column!r} is numeric; {value!r} is not a number") from None

    def with_column(self, name: str, values: Any) -> Runs:
        """Return the same rows with one column added or replaced."""
        return replace(self, columns={**self.columns, name: _column(values)})

    def split(self, column: str) -> dict[str, Runs]:
        """Return one table per value of the column, in order of first appearance; a number's key is its short text."""
        values = self[column]
        text = values if values.dtype == object else np.array([f"{v:g}" for v in values], dtype=object)
        return {str(value): self.take(text == value) for value in dict.fromkeys(text)}

    def require(
        self,
        columns: tuple[str, ...],
        valid: Callable[[np.ndarray], np.ndarray] = lambda values: values > 0,
        expected: str = "a finite number above zero",
    ) -> None:
        """Check that the columns are there and hold finite numbers that `valid` accepts (`expected` in words).

        Raises UserError that names the first broken row by its line.
        """
        for name in columns:
            values = self[name]
            if values.dtype == object:
                raise UserError(f"{self.source}: column {name!r} is text; expected numbers")
            with np.errstate(invalid="ignore"):
                good = np.isfinite(values) & valid(values)
            if not good.all():
                row = int(np.argmin(good))
                others = int((~good).sum()) - 1
                more = f" (and {others} more {'rows' if others > 1 else 'row'} like it)" if others else ""
                raise UserError(
                    f"{self.source}, {self.place} {self.lines[row]}: {name} is {values[row]:g}; "
                    f"expected {expected}{more}"
                )


def _column(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "iufb":
        return array.astype(np.float64)
    return np.array([str(value) for value in array], dtype=object)
