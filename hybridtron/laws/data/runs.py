"""Training runs as columns of equal length, which laws are fitted to.

Canonical columns, where a source has them: n_params, tokens, flops, loss (nats per token), M (tokens per parameter),
total_state (elements), score, error (in 0..1), group, arch. Other columns keep the name that the source gives them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybridtron.errors import UserError
from hybridtron.laws.data.columns import no_column
from hybridtron.laws.data.points import parse_number

_ORDERS: dict[str, Callable[[Any, Any], Any]] = {"<": operator.le, ">": operator.ge}  # by the end of a filter's column


@dataclass(frozen=True)
class Runs:
    """A table of n rows. Numbers are float64 arrays, text is an array of str objects; nothing is changed in place."""

    columns: dict[str, np.ndarray]  # name -> [n]
    lines: np.ndarray  # 1-based line of each row in its source, [n]
    source: str
    place: str = "line"  # what `lines` counts: line of a text file, row of a table, run of a folder
    notes: tuple[str, ...] = ()  # how columns came about
    warnings: tuple[str, ...] = ()  # what looks odd about the source
    broken: tuple[str, ...] = ()  # kinds of the assumptions of the law that the rows break

    @classmethod
    def of(cls, source: str = "data", **columns: Any) -> Runs:
        """Build runs from arrays or lists of equal length, lines counted from 1."""
        arrays = {name: _column(values) for name, values in columns.items()}
        return cls(arrays, np.arange(1, common_length(source, arrays) + 1), source)

    def __len__(self) -> int:
        return len(self.lines)

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def __getitem__(self, name: str) -> np.ndarray:
        """Return one column, [n]; raises UserError with the nearest names when there is none of this name."""
        if name not in self.columns:
            raise no_column(name, self.columns, self.source)
        return self.columns[name]

    def take(self, rows: np.ndarray) -> Runs:
        """Return the rows of a boolean mask or of an index array, in its order."""
        rows = np.asarray(rows)
        columns = {name: values[rows] for name, values in self.columns.items()}
        return replace(self, columns=columns, lines=self.lines[rows])

    def where(self, column: str, value: object) -> Runs:
        """Return the rows whose column equals the value, as a number where both are numbers, else as text.

        With `COLUMN!` as the column, return the other rows; with `COLUMN<` (`COLUMN>`) those whose number is at most
        (at least) the value, a number or the name of a column.
        """
        return self.take(self.matches(column, value))

    def matches(self, column: str, value: object) -> np.ndarray:
        """Return which rows `where` keeps, [n]; raises UserError for text sought in a column of numbers."""
        if column[-1:] in _ORDERS:
            left, right = self.numbers(column[:-1]), self._limit(str(value))
            return np.asarray(_ORDERS[column[-1]](left, right))  # false where either is no number
        name, text = column.removesuffix("!"), str(value)
        values = self[name]
        try:
            if values.dtype == object:
                same = np.array([_equal(cell, text) for cell in values], dtype=bool)
            else:
                same = values == float(text)
            return same != column.endswith("!")
        except ValueError:
            raise UserError(f"{self.source}: column {name!r} is numeric; {value!r} is not a number") from None

    def _limit(self, text: str) -> np.ndarray | float:
        """Return the number that a filter compares with, or those of the column of that name; raises UserError."""
        try:
            return parse_number(text)
        except ValueError:
            return self.numbers(text)

    def numbers(self, name: str) -> np.ndarray:
        """Return a column as numbers, nan where a cell is none; raises UserError for a column without numbers."""
        values = self[name]
        if values.dtype != object:
            return values
        numbers = np.array([_number(cell) for cell in values], dtype=float)
        if len(numbers) and np.isnan(numbers).all():
            raise UserError(f"{self.source}: column {name!r} holds no numbers; <= and >= compare numbers")
        return numbers

    def with_column(self, name: str, values: Any) -> Runs:
        """Return the same rows with one column added or replaced."""
        return replace(self, columns={**self.columns, name: _column(values)})

    def split(self, column: str) -> dict[str, Runs]:
        """Return one table per value of the column, in order of first appearance; a number's key is its short text."""
        values = self[column]
        text = values if values.dtype == object else np.array([f"{v:g}" for v in values], dtype=object)
        return {str(value): self.take(text == value) for value in dict.fromkeys(text)}

    def labels(self, column: str) -> NDArray[np.intp]:
        """Return the number of each row's value among the values of the column, sorted as text; [n]."""
        return np.unique(self[column].astype(str), return_inverse=True)[1]

    def require(
        self,
        name: str,
        valid: Callable[[np.ndarray], np.ndarray] = lambda values: values > 0,
        expected: str = "a finite number above zero",
    ) -> None:
        """Check that a column is there and holds finite numbers that `valid` accepts (`expected` in words).

        Raises UserError that names the first broken row by its line.
        """
        values = self[name]
        if values.dtype == object:
            raise UserError(f"{self.source}: column {name!r} is text; expected numbers")
        with np.errstate(invalid="ignore"):
            good = np.isfinite(values) & valid(values)
        if not good.all():
            row = int(np.argmin(good))
            others = int((~good).sum()) - 1
            more = f" (and {others} more {'rows' if others > 1 else 'row'} like it)" if others else ""
            raise UserError(f"{self.locate(row)}: {name} is {values[row]:g}; expected {expected}{more}")

    def locate(self, row: int) -> str:
        """Return the source and line of a row, for messages."""
        return f"{self.source}, {self.place} {self.lines[row]}"


def common_length(source: str, columns: dict[str, Any]) -> int:
    """Return the length of all columns; raises UserError when they differ."""
    sizes = {len(values) for values in columns.values()}
    if len(sizes) > 1:
        raise UserError(f"{source}: columns of lengths {sorted(sizes)}; expected one length for all")
    return sizes.pop() if sizes else 0


def text_columns(rows: Mapping[Any, list[str]]) -> dict[str, np.ndarray]:
    """Return columns of text as arrays of str objects."""
    return {str(name): np.array(cells, dtype=object) for name, cells in rows.items()}


def _number(cell: str) -> float:
    try:
        return parse_number(cell)
    except ValueError:
        return np.nan


def _equal(cell: str, text: str) -> bool:
    try:
        return cell == text or float(cell) == float(text)
    except ValueError:
        return False


def _column(values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind in "iufb":
        return array.astype(np.float64)
    return np.array([str(value) for value in array], dtype=object)
