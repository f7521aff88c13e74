"""A table of runs before any column is known to hold numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cells:
    """A source as it stands: text, before any column is known to hold numbers."""

    columns: dict[str, list[str]]
    lines: list[int]
    source: str
    place: str = "line"
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def take(self, rows: list[int]) -> Cells:
        """Return the cells of these rows."""
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[i] for i in rows])
