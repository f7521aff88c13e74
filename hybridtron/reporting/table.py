"""Tables: columns with a label, a number format and an alignment, for a page, a terminal or JSON."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from hybridtron.reporting.numbers import NONE, decimal, decimals, grouped

PIPE_WIDTH = 10_000  # columns where the output is no terminal, so that nothing is wrapped or cut
LONG_TEXT = 30  # letters from which a cell of the page may wrap
_TRAILING_BLANKS = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


@dataclass(frozen=True)
class Column:
    """A column of a table. `note` stands small below the label; None is shown as a dash."""

    label: str
    values: Sequence[Any]
    format: Callable[[Any], Any] = lambda value: value
    right: bool = False  # aligned to the right, as numbers are
    note: str = ""

    @property
    def cells(self) -> tuple[Any, ...]:
        """Return the values as text or Markup, in which what follows a line break is small."""
        return tuple(NONE if value is None else self.format(value) for value in self.values)


def integer_column(label: str, values: Iterable[float | None]) -> Column:
    """Return a column of numbers without a fraction, in groups of three digits."""
    return Column(label, tuple(values), grouped, right=True)


def decimal_column(label: str, values: Iterable[float | None], digits: int | None = None) -> Column:
    """Return a column of numbers with equally many decimal places; by default as many as show how they differ."""
    values = tuple(values)
    places = decimals(values) if digits is None else digits
    return Column(label, values, lambda value: decimal(value, places), right=True)


@dataclass(frozen=True)
class Table:
    """Columns of equal length."""

    columns: Sequence[Column]

    @classmethod
    def from_rows(cls, labels: Sequence[str], rows: Iterable[Sequence[Any]], right: Iterable[str] = ()) -> Table:
        """Build a table of texts from its rows; `right` names the columns that are aligned to the right."""
        values = list(zip(*rows, strict=True)) or [()] * len(labels)
        return cls([Column(label, some, right=label in right) for label, some in zip(labels, values, strict=True)])

    def rows(self) -> Iterable[tuple[Any, ...]]:
        """Return the cells of each row."""
        return zip(*(column.cells for column in self.columns), strict=True)

    def to_html(self) -> Markup:
        """Render a table that scrolls sideways where the page is too narrow; nothing when there are no rows."""
        from hybridtron.reporting.page import blocks

        rows = [
            [_html_cell(column, cell) for column, cell in zip(self.columns, row, strict=True)] for row in self.rows()
        ]
        heads = [("num" if column.right else "", column.label, column.note) for column in self.columns]
        return blocks.table(heads if any(column.label for column in self.columns) else (), rows) if rows else Markup()

    __html__ = to_html  # so that templates take a table as it is

    def to_terminal(self, console: Console | None = None, header: bool = True) -> str:
        """Render for a terminal of the console's width, without trailing blanks; cells may be rich `Text`.

        What would be so wide that words are broken becomes several tables, each with the first column.
        """
        console = console or terminal()
        groups = self._groups(console)
        with console.capture() as captured:
            for number, columns in enumerate(groups):
                if number:
                    console.print()
                console.print(_rich_table(columns, header))
        return _TRAILING_BLANKS.sub(lambda end: end[0].replace(" ", ""), captured.get())

    def _groups(self, console: Console) -> list[list[Column]]:
        """Return the columns in groups that fit into the console's width, each with the first column."""
        groups, options = [list(self.columns[:1])], console.options.update(width=PIPE_WIDTH)
        for column in self.columns[1:]:
            wider = _rich_table([*groups[-1], column], header=True)
            if len(groups[-1]) > 1 and Measurement.get(console, options, wider).minimum > console.width:
                groups.append(list(self.columns[:1]))
            groups[-1].append(column)
        return groups

    def to_json(self) -> list[dict[str, Any]]:
        """Return one mapping per row, from labels to unformatted values."""
        labels = [column.label for column in self.columns]
        values = zip(*(column.values for column in self.columns), strict=True)
        return [dict(zip(labels, row, strict=True)) for row in values]


def _rich_table(columns: Sequence[Column], header: bool) -> RichTable:
    """Return the columns as a table of rich, without lines."""
    table = RichTable(box=None, pad_edge=False, show_header=header)
    for column in columns:
        table.add_column(Text(column.label), justify="right" if column.right else "left")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def terminal() -> Console:
    """Return a console for standard output that does not wrap where the output is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def _html_cell(column: Column, cell: Any) -> tuple[str, str, str]:
    """Return a cell's class, its text, and the small text below it."""
    text = cell if isinstance(cell, Markup) else str(cell)
    main, _, below = text.partition("\n")
    is_long = max(len(main), len(below)) > LONG_TEXT and not isinstance(cell, Markup)
    return "num" if column.right else "text" if is_long else "", main, below
