"""CSV files, parquet files and run folders into Runs whose needed columns are whole.

Bad input raises UserError that names the source, the line and the column. What is only odd becomes a warning that asks.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.config.nearest import nearest, one_of
from hybridtron.errors import UserError
from hybridtron.laws.data.columns import DERIVED, RUN_NAMES, canonical_names, missing_column, no_column
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.families.law import Fit

TEXT = ("arch",)  # names, also where they look like numbers
# Columns whose values are not simply above zero.
RANGES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "score": (np.isfinite, "a finite number"),
    "error": (lambda error: (error > 0) & (error <= 1), "a share above 0 and up to 1 (is it in per cent?)"),
}


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
        columns = {name: [cells[i] for i in rows] for name, cells in self.columns.items()}
        return replace(self, columns=columns, lines=[self.lines[i] for i in rows])


@dataclass(frozen=True)
class Reading:
    """Runs, how their columns came about, what looks odd about them, and the request that they answer."""

    runs: Runs
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    request: dict[str, Any] = field(default_factory=dict)

    def annotate(self, fit: Fit) -> Fit:
        """The fit with what the reading said: its warnings first, and where the data came from in the settings."""
        data = {**self.request, "notes": list(self.notes)}
        return replace(fit, warnings=[*self.warnings, *fit.warnings], settings={**fit.settings, "data": data})


def read_runs(
    sources: Sequence[Path],
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    where: Sequence[tuple[str, str]] = (),
    group: str | None = None,
    context: int | None = None,
) -> Reading:
    """The rows of all sources that pass every (column, value) of `where`.

    needed: canonical columns that must be there, or follow from others, as finite numbers above zero (a score may have
    any sign, an error lies in 0..1; `arch` is text). optional: the same for columns that may be missing. columns: which
    column of the sources each canonical name means. group: a column that must be there, naming each row's run.
    context: sequence length that the state size of run folders assumes; by default each run's own. Raises UserError.
    """
    tables = [_cells(Path(source), context) for source in sources]
    for column, value in where:
        tables = _filter(tables, column, value)
    parts = [_typed(table, tuple(needed), tuple(optional), columns or {}, group) for table in tables if table.lines]
    runs = _joined([part.runs for part in parts])
    notes = [note for part in parts for note in part.notes]
    warnings = [warning for part in parts for warning in part.warnings]
    request = {"sources": [str(source) for source in sources], "where": [list(pair) for pair in where]}
    request |= {"columns": dict(columns or {}), "context": context}
    return Reading(runs, tuple(dict.fromkeys(notes)), tuple(dict.fromkeys(warnings)), request)


def _cells(source: Path, context: int | None) -> Cells:
    if source.is_dir():
        from hybridtron.laws.data.run_folders import read_run_folders

        return read_run_folders(source, context)
    if not source.is_file():
        beside = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        close = nearest(source.name, beside)
        raise UserError(f"{source}: no such file or folder" + (f" (nearest: {close})" if close else ""))
    table = _read_parquet(source) if _is_parquet(source) else _read_csv(source)
    if not table.lines:
        raise UserError(f"{source}: no rows; expected a header and at least one run")
    return table


def _read_csv(path: Path) -> Cells:
    """Comma-separated, or tab-separated in a .tsv file, with a header; blank lines are passed over."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
            header = [name.strip() for name in next(reader, [])]
            twice = sorted({name for name in header if header.count(name) > 1})
            if not header or twice or not all(header):
                what = f"column {twice[0]!r} twice" if twice and twice[0] else "a column without a name"
                raise UserError(f"{path}, line 1: {what if header else 'is empty'}; expected one name per column")
            rows, lines = [], []
            for row in reader:
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise UserError(
                        f"{path}, line {reader.line_num}: {len(row)} cells; expected {len(header)}, as in the header"
                    )
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; expected comma-separated text") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}; expected comma-separated text in UTF-8, or a .parquet file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return Cells({name: [row[i] for row in rows] for i, name in enumerate(header)}, lines, str(path))


def _is_parquet(path: Path) -> bool:
    """By its first bytes, whatever its name, or by its name."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1" or path.suffix.lower() in (".parquet", ".pq")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_parquet(path: Path) -> Cells:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs the package pyarrow; install hybridtron[parquet] or convert to CSV") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]})") from None
    columns = {
        name: ["" if value is None else str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return Cells(columns, list(range(1, table.num_rows + 1)), str(path), place="row")


def _filter(tables: list[Cells], column: str, value: str) -> list[Cells]:
    """The rows whose cell equals the value, as a number where both are numbers."""
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
    """Canonical names, numbers, derived columns and checks of one source."""
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
    """Numbers where every cell that is not empty is one; `strict` refuses anything else, by its line."""
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
    """Add a column that follows from others, if they are there; the formula used, for the notes."""
    for sources, formula, words in DERIVED.get(name, ()):
        if all(column in columns for column in sources):
            with np.errstate(all="ignore"):  # a broken cell is found by the check of its own column
                columns[name] = formula(*(columns[column] for column in sources))
            return [words]
    return []


def _ungrouped(runs: Runs, group: str | None) -> list[str]:
    """A column of run names that repeat, when nothing says that rows belong together."""
    for name in RUN_NAMES:
        if group is None and name in runs and len(set(runs[name])) < len(runs):
            return [
                f"grouping: {runs.source}: {len(runs)} rows of {len(set(runs[name]))} values of {name!r}; are they "
                f"checkpoints of one run each? Then --group {name} makes the intervals honest"
            ]
    return []


def _joined(parts: list[Runs]) -> Runs:
    """One table with the columns that all parts have; a column is text where one part has text."""
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
