"""Read files, run folders and tables in memory into Runs whose needed columns are whole.

Bad input raises UserError that names the source, the line and the column. What is only odd becomes a warning that asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from hybridtron.config.nearest import one_of
from hybridtron.errors import UserError
from hybridtron.laws.data.cells import best_of_cells
from hybridtron.laws.data.columns import DERIVED, SYNONYMS, canonical_names, missing_columns
from hybridtron.laws.data.points import parse_number
from hybridtron.laws.data.ranges import check_ranges
from hybridtron.laws.data.runs import Runs
from hybridtron.laws.data.sources import read_text

SIX_N_D = "6ND"  # chosen as the column of flops: leave the source's own, and take 6 n_params tokens
TEXT = ("arch",)  # names, also where they look like numbers


def read_runs(
    sources: Sequence[Any],
    needed: Sequence[str],
    optional: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    where: Sequence[tuple[str, Any]] = (),
    group: str | None = None,
    context: int | None = None,
    keep_best: bool = False,
    at_most: Mapping[str, str] | None = None,
) -> Runs:
    """Read the rows of all sources that pass every (column, value) of `where`.

    Args:
        sources: paths of CSV or parquet files, of run folders or of folders of them, and tables in memory.
        needed: canonical columns that must be there, or follow from others, as finite numbers that are possible
            (`data.ranges`; `arch` is text).
        optional: the same for columns that may be missing.
        columns: which column of the sources each canonical name means; for flops also "6ND" (none, 6 N D instead).
        group: a column that must be there, naming each row's run.
        context: sequence length that the state size of run folders assumes; by default each run's own.
        keep_best: whether only the lowest loss of each cell of equal parameters and tokens is kept (`data.cells`).
        at_most: column -> the column above which its values cannot lie.

    Raises UserError.
    """
    tables = [read_text(source, context, where) for source in sources]
    tables, empty = [table for table in tables if len(table)], [table for table in tables if not len(table)]
    left_out = tuple(warning for table in empty for warning in table.warnings)
    if not tables:
        raise UserError("; ".join(left_out))
    for column, value in where:
        tables = _filter(tables, column, str(value), columns or {})
    typed = [_typed(table, needed, optional, columns or {}, group) for table in tables if len(table)]
    for table in typed:
        numbers = [name for name in (*needed, *optional) if name in table and name not in TEXT]
        check_ranges(table, numbers, at_most or {})
    runs = _joined(typed)
    runs = _without_repeats(replace(runs, warnings=left_out + runs.warnings), [len(table) for table in typed])
    return best_of_cells(runs, needed) if keep_best else runs


def _filter(tables: list[Runs], column: str, value: str, chosen: Mapping[str, str]) -> list[Runs]:
    """Keep the rows that pass; a canonical name stands for its column where a source has none of that name."""
    name = column.rstrip("!<>")
    aliased = [_aliased(table, (name, value), chosen) for table in tables]
    kept = [table.take(alias.matches(column, value)) for table, alias in zip(tables, aliased, strict=True)]
    if not any(map(len, kept)):
        rest = _expected(aliased, column, value) or ", as the filters before it left none"
        raise UserError(f"filter {column}={value} leaves no rows of {_sources(tables)}{rest}")
    return kept


def _expected(tables: list[Runs], column: str, value: str) -> str:
    """Say what a filter that leaves no rows may ask for; empty where there are no rows."""
    name = column.rstrip("!<>")
    seen = list(dict.fromkeys(str(cell) for table in tables for cell in table[name]))
    if not seen:
        return ""
    if column[-1] in "<>":
        if any(value in table for table in tables):
            return f"; {name} is {'above' if column[-1] == '<' else 'below'} {value} in every row"
        numbers = np.concatenate([table.numbers(name) for table in tables if len(table)])
        return f"; {name} is {np.nanmin(numbers):g} to {np.nanmax(numbers):g}"
    if column.endswith("!"):
        return f"; {name} is {value} in every row"
    return "; expected " + one_of(value, seen[:12]) + (", ..." if len(seen) > 12 else "")


def _aliased(table: Runs, wanted: Sequence[str], chosen: Mapping[str, str]) -> Runs:
    """Add the canonical columns that a filter names, under other names in the source or derived from its columns."""
    if all(name in table or name not in SYNONYMS for name in wanted):
        return table
    names = _canonical_names(table, chosen)
    known = replace(table, columns={**{name: table[column] for name, column in names.items()}, **table.columns})
    added = {name: known[name] for name in wanted if name in names and name not in table}
    for name in wanted:
        if name not in known:
            sources = {one for way in DERIVED.get(name, ()) for one in way[0] if one in known}
            numbers = {one: known.numbers(one) for one in sources}
            added |= {name: numbers[name]} if _derive(name, numbers) else {}
    return replace(table, columns={**table.columns, **added})


def _canonical_names(table: Runs, chosen: Mapping[str, str]) -> dict[str, str]:
    """Return the source's column of each canonical name; none of flops where 6 N D is chosen. Raises UserError."""
    six_n_d = chosen.get("flops") == SIX_N_D
    columns = {name: column for name, column in chosen.items() if not (six_n_d and name == "flops")}
    names = canonical_names(table.columns, columns, table.source)
    return {name: column for name, column in names.items() if not (six_n_d and name == "flops")}


def _typed(
    table: Runs, needed: Sequence[str], optional: Sequence[str], chosen: Mapping[str, str], group: str | None
) -> Runs:
    """Convert the text of one source: canonical names, numbers, derived columns, checks."""
    names = _canonical_names(table, chosen)
    if chosen.get("flops") == SIX_N_D:
        table = replace(table, columns={name: cells for name, cells in table.columns.items() if name != "flops"})
    cells = table.columns | {canonical: table.columns[name] for canonical, name in names.items()}
    lacking = [name for name in (*needed, *optional) if name not in cells]
    sources = {column for name in lacking for way in DERIVED.get(name, ()) for column in way[0]}
    used = {*needed, *optional, *sources}
    columns = {
        name: values if name in TEXT else _numbers_or_text(table, name, values, strict=name in used)
        for name, values in cells.items()
    }
    notes = [f"{canonical} is column {name}" for canonical, name in names.items() if canonical != name]
    for name in lacking:
        notes += _derive(name, columns)
    if missing := [name for name in needed if name not in columns]:
        raise missing_columns(missing, table.columns, table.source)
    runs = replace(table, columns=columns)
    if group is not None and (empty := cells.get(group, runs[group]) == "").any():
        raise UserError(f"{runs.locate(int(np.argmax(empty)))}: {group} is empty; expected the run of each row")
    return replace(runs, notes=(*table.notes, *notes), warnings=table.warnings)


def _numbers_or_text(table: Runs, name: str, cells: np.ndarray, strict: bool) -> np.ndarray:
    """Return numbers where every cell that is not empty is one; `strict` refuses anything else, by its line."""
    numbers = np.full(len(cells), np.nan)
    for i, cell in enumerate(cells):
        try:
            numbers[i] = parse_number(cell) if strict else float(cell or "nan")
        except ValueError:
            if strict:
                raise UserError(
                    f"{table.locate(i)}: {name} is {repr(cell) if cell else 'empty'}; expected a number"
                ) from None
            return cells
    return numbers


def _derive(name: str, columns: dict[str, np.ndarray]) -> list[str]:
    """Add a column that follows from others, if they are there; return the formula used, for the notes."""
    for sources, formula, words in DERIVED.get(name, ()):
        if all(column in columns for column in sources):
            with np.errstate(all="ignore"):  # a broken cell is found by the check of its own column
                columns[name] = formula(*(columns[column] for column in sources))
            return [words]
    return []


def _joined(parts: list[Runs]) -> Runs:
    """Join tables by the columns that all have; a column is text where one part has text."""
    if len(parts) == 1:
        return parts[0]
    columns = {}
    for name in parts[0].columns:
        pieces = [part[name] for part in parts if name in part]
        if len({piece.dtype for piece in pieces}) > 1:
            pieces = [piece.astype(str).astype(object) for piece in pieces]
        if len(pieces) == len(parts):
            columns[name] = np.concatenate(pieces)
    notes, warnings = (
        tuple(dict.fromkeys(text for part in parts for text in getattr(part, name))) for name in ("notes", "warnings")
    )
    return Runs(
        columns, np.concatenate([part.lines for part in parts]), _sources(parts), parts[0].place, notes, warnings
    )


def _without_repeats(runs: Runs, sizes: Sequence[int]) -> Runs:
    """Keep the first of the rows of several sources, of `sizes` rows, that are equal in every column.

    They are one run given twice. Equal rows of one source are runs of their own: a table may hold two of equal results.
    """
    rows = list(zip(*(values.astype(str) for values in runs.columns.values()), strict=True))
    first: dict[tuple[str, ...], int] = {}
    kept: dict[tuple[tuple[str, ...], int], int] = {}  # by the row and how often its source had it before
    source = np.repeat(np.arange(len(sizes)), sizes)
    seen: Counter[tuple[tuple[str, ...], int]] = Counter()
    for i, row in enumerate(rows):
        first.setdefault(row, i)
        kept.setdefault((row, seen[row, source[i]]), i)
        seen[row, source[i]] += 1

    def warning(at: np.ndarray, name: str, consequence: str) -> list[str]:
        if not len(at):
            return []
        lines = f"{runs.place} {runs.lines[at[0]]}, as {runs.place} {runs.lines[first[rows[at[0]]]]}"
        share = f"{len(at)} of {len(runs)} rows"
        return [f"{name}: {share} are equal to another in every column and {consequence} (first: {lines})"]

    left_out = np.setdiff1d(np.arange(len(rows)), list(kept.values()))
    equal = np.array(sorted(i for (_, before), i in kept.items() if before), dtype=int)
    warnings = (
        *runs.warnings,
        *warning(left_out, "repeated", "count once"),
        *warning(equal, "equal", "count as runs of their own, since they are of one source"),
    )
    return replace(runs.take(np.isin(np.arange(len(rows)), left_out, invert=True)), warnings=warnings)


def _sources(parts: list[Runs]) -> str:
    return parts[0].source + (f" and {len(parts) - 1} more" if len(parts) > 1 else "")
