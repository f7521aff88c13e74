"""Read files, run folders and tables in memory into Runs whose needed columns are whole.

Bad input raises UserError that names the source, the line and the column. What is only odd becomes a warning that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.data.columns import DERIVED, RUN_NAMES, canonical_names, missing_column, no_column
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.data.sources import Cells, read_cells, source_name
from hybridtron.laws.families.law import Fit

TEXT = ("arch",)  # names, also where they look like numbers
# Columns whose values are not simply above zero.
RANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "score": (np.isfinite, "a finite number"),
    "error": (lambda error: (error > 0) & (error <= 1), "a share above 0 and up to 1 (is it in per cent?)"),
}


@dataclass(frozen=True)
class Reading:
    """Runs, how their columns came about, what looks odd about them, and the request that they answer."""

    runs: Runs
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    request: dict[str, Any] = field(default_factory=dict)

    def annotate(self, fit: Fit) -> Fit:
        """Return the fit with the warnings of the reading first, and where the data came from in its settings."""
        data = {**self.request, "notes": list(self.notes)}
        return replace(fit, warnings=[*self.warnings, *fit.warnings], settings={**fit.settings, "data": data})


def read_runs(
    sources: Sequence[Any],
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    where: Sequence[tuple[str, Any]] = (),
    group: str | None = None,
    context: int | None = None,
) -> Reading:
    """Read the rows of all sources that pass every (column, value) of `where`.

    Args:
        sources: paths of CSV or parquet files, of run folders or of folders of them, and tables in memory.
        needed: canonical columns that must be there, or follow from others, as finite numbers above zero (a score may
            have any sign, an error lies in 0..1; `arch` is text).
        optional: the same for columns that may be missing.
        columns: which column of the sources each canonical name means.
        group: a column that must be there, naming each row's run.
        context: sequence length that the state size of run folders assumes; by default each run's own.

    Raises UserError.
    """
    tables = [read_cells(source, context) for source in sources]
    for column, value in where:
        tables = _filter(tables, column, str(value))
    parts = [_typed(table, tuple(needed), tuple(optional), columns or {}, group) for table in tables if table.lines]
    runs = _joined([part.runs for part in parts])
    notes = [note for part in parts for note in part.notes]
    warnings = [warning for part in parts for warning in part.warnings]
    request = {"sources": [source_name(source) for source in sources], "where": [list(pair) for pair in where]}
    request |= {"columns": dict(columns or {}), "context": context}
    return Reading(runs, tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(warnings)), request)


def _filter(tables: list[Cells], column: str, value: str) -> list[Cells]:
    """Return the rows whose cell equals the value, as a number where both are numbers."""
    kept, seen = [], []
    for table in tables:
        if column not in table.columns:
            raise no_column(column, table.columns, table.source)
        cells = table.columns[column]
        seen += [cell for cell in dict.fromkeys(cells) if cell not in seen]
        kept.append(table.take([i for i, cell in enumerate(cells) if _equal(cell, value)]))
    if not any(table.lines for table in kept):
        expected = one_of(value, seen[:12]) + (", ..." if len(seen) > 12 else "")
        rest = "; expected " + expected if seen else ", as the filters before it left none"
        raise UserError(f"filter {column}={value} leaves no rows of {_sources([t.source for t in tables])}{rest}")
    return kept


def _equal(cell: str, value: str) -> bool:
    try:
        return float(cell) == float(value)
    except ValueError:
        return cell == value


def _typed(
    table: Cells, needed: tuple[str, ...], optional: tuple[str, ...], chosen: Mapping[str, str], group: str | None
) -> Reading:
    """Convert one source: canonical names, numbers, derived columns, checks."""
    names = canonical_names(table.columns, chosen, table.source)
    cells = {**table.columns, **{canonical: table.columns[name] for canonical, name in names.items()}}
    lacking = [name for name in (*needed, *optional) if name not in cells]
    sources = {column for name in lacking for way in DERIVED.get(name, ()) for column in way[0]}
    used = {*needed, *optional, *sources} - set(TEXT)
    columns = {name: _numbers_or_text(table, name, values, strict=name in used) for name, values in cells.items()}
    columns |= {name: np.array(cells[name], dtype=object) for name in TEXT if name in cells}
    notes = [f"{canonical} is column {name}" for canonical, name in names.items() if canonical != name]
    for name in lacking:
        notes += _derive(name, columns)
    for name in needed:
        if name not in columns:
            raise missing_column(name, table.columns, table.source)
    if group is not None and group not in columns:
        raise no_column(group, table.columns, table.source)
    if group is not None and "" in cells[group]:
        line = table.lines[list(cells[group]).index("")]
        raise UserError(f"{table.source}, {table.place} {line}: {group} is empty; expected the run of each row")
    runs = Runs(columns, np.array(table.lines), table.source, table.place)
    for name in (*needed, *optional):
        if name in columns and name not in TEXT:
            runs.require((name,), *RANGES.get(name, ()))
    return Reading(runs, (*table.notes, *notes), (*table.warnings, *_ungrouped(runs, group)))


def _numbers_or_text(table: Cells, name: str, cells: list[str], strict: bool) -> np.ndarray:
    """Return numbers where every cell that is not empty is one; `strict` refuses anything else, by its line."""
    numbers = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            numbers[i] = float(cell) if cell or strict else np.nan
        except ValueError:
            if strict:
                what = repr(cell) if cell else "empty"
                place = f"{table.source}, {table.place} {table.lines[i]}"
                raise UserError(f"{place}: {name} is {what}; expected a number") from None
            return np.array(cells, dtype=object)
    return numbers


def _derive(name: str, columns: dict[str, np.ndarray]) -> list[str]:
    """Add a column that follows from others, if they are there; return the formula used, for the notes."""
    for sources, formula, words in DERIVED.get(name, ()):
        if all(column in columns for column in sources):
            with np.errstate(all="ignore"):  # a broken cell is found by the check of its own column
                columns[name] = formula(*(columns[column] for column in sources))
            return [words]
    return []


def _ungrouped(runs: Runs, group: str | None) -> list[str]:
    """Warn of a column of run names that repeat, when nothing says that rows belong together."""
    for name in RUN_NAMES:
        if group is None and name in runs and len(set(runs[name])) < len(runs):
            return [
                f"grouping: {runs.source}: {len(runs)} rows of {len(set(runs[name]))} values of {name!r}; are they "
                f"checkpoints of one run each? Then group = {name} resamples the rows of a run together"
            ]
    return []


def _joined(parts: list[Runs]) -> Runs:
    """Join tables by the columns that all have; a column is text where one part has text."""
    if len(parts) == 1:
        return parts[0]
    shared = [name for name in parts[0].columns if all(name in part for part in parts)]
    columns = {}
    for name in shared:
        pieces = [part[name] for part in parts]
        if len({piece.dtype for piece in pieces}) > 1:
            pieces = [piece.astype(str).astype(object) for piece in pieces]
        columns[name] = np.concatenate(pieces)
    lines = np.concatenate([part.lines for part in parts])
    return Runs(columns, lines, _sources([part.source for part in parts]), parts[0].place)


def _sources(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
