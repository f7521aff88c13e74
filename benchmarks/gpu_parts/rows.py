"""Rows of the table, and calls whose failure is a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.console import Console
from rich.table import Table


class Row(NamedTuple):
    """`kernels` are the seconds of the device in work; `ratio` is how many times as fast we are; `floor` the share of
    the kernels' time that bandwidth or FLOPs alone need."""

    part: str
    name: str
    seconds: float | None = None
    kernels: float | None = None
    tokens_per_s: float | None = None
    tflops: float | None = None
    mfu: float | None = None
    hfu: float | None = None
    ratio: float | None = None
    floor: float | None = None
    memory_gb: float | None = None
    error: str | None = None


COLUMNS: dict[str, Callable[[float], str]] = {
    "seconds": lambda value: f"{value * 1e3:.3g} ms",
    "kernels": lambda value: f"{value * 1e3:.3g} ms",
    "tokens_per_s": lambda value: f"{value:,.0f}",
    "tflops": lambda value: f"{value:.0f}",
    "mfu": lambda value: f"{value:.1%}",
    "hfu": lambda value: f"{value:.1%}",
    "ratio": lambda value: f"{value:.2f}x",
    "floor": lambda value: f"{value:.0%}",
    "memory_gb": lambda value: f"{value:.1f} GB",
}
TITLES = ["time", "of kernels", "tokens/s", "TFLOP/s", "MFU", "HFU", "speed-up", "of floor", "memory"]


def first_line(error: BaseException) -> str:
    """Return an error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def attempted(part: str, name: str, make: Callable[[], list[Row]]) -> list[Row]:
    """Return the rows that a call makes, or one with its error."""
    try:
        return make()
    except Exception as error:
        return [Row(part, name, error=first_line(error))]


def print_table(rows: list[Row], console: Console) -> None:
    """Print all rows as one table."""
    table = Table("part", "what", *TITLES)
    for row in rows:
        cells = [
            "" if (value := getattr(row, column)) is None else text(value) for column, text in COLUMNS.items()
        ]  # fmt: skip
        table.add_row(row.part, row.name + (f": {row.error}" if row.error else ""), *cells)
    console.print(table)
