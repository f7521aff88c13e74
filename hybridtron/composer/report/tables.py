"""Columns of a table in which every number has the same form: for the page and for the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

NONE = "–"
DIGITS, MOST_DIGITS = 4, 8  # behind the point
CLOSE = 5e-3  # scores that differ by less than this all together get more digits


@dataclass(frozen=True)
class Column:
    head: str
    cells: tuple[str, ...]
    numeric: bool = False


def words(head: str, values: Sequence[Any]) -> Column:
    return Column(head, tuple(NONE if value is None else str(value) for value in values))


def whole(head: str, values: Sequence[float | None]) -> Column:
    """Numbers without a fraction, in groups of three digits."""
    return Column(head, tuple(NONE if value is None else grouped(value) for value in values), numeric=True)


def fixed(head: str, values: Sequence[float | None], digits: int | None = None) -> Column:
    """Numbers with equally many digits behind the point; by default as many as tell these apart."""
    behind = decimals(values) if digits is None else digits
    return Column(head, tuple(decimal(value, behind) for value in values), numeric=True)


def grouped(value: float) -> str:
    return f"{round(value):,}".replace("-", "−")


def decimal(value: float | None, digits: int) -> str:
    return NONE if value is None else f"{value:,.{digits}f}".replace("-", "−")


def decimals(values: Sequence[float | None]) -> int:
    """Digits behind the point that suit all of these."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    span = max(known, default=0.0) - min(known, default=0.0)
    if 0 < span < CLOSE:
        return min(MOST_DIGITS, 2 - math.floor(math.log10(span)))
    return DIGITS if max(map(abs, known), default=0.0) < 1000 else 1


def html_table(columns: Sequence[Column]) -> str:
    if not columns or not columns[0].cells:
        return ""
    sides = [' class="num"' if column.numeric else "" for column in columns]
    head = "".join(f"<th{side}>{escape(c.head)}</th>" for side, c in zip(sides, columns, strict=True))
    lines = zip(*(column.cells for column in columns), strict=True)
    body = "".join(
        "<tr>" + "".join(f"<td{side}>{escape(cell)}</td>" for side, cell in zip(sides, line, strict=True)) + "</tr>"
        for line in lines
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def text_table(columns: Sequence[Column], indent: str = "") -> list[str]:
    """Lines for a terminal, without a head."""
    widths = [max(map(len, column.cells), default=0) for column in columns]
    return [
        indent
        + "  ".join(
            cell.rjust(width) if column.numeric else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ).rstrip()
        for line in zip(*(column.cells for column in columns), strict=True)
    ]
