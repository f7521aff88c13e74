"""CSV and parquet files, run folders and tables in memory as columns of text."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybridtron.config.nearest import nearest
from hybridtron.errors import UserError
from hybridtron.laws.data.runs import Runs, common_length, text_columns
from hybridtron.reporting.numbers import plural

MISSING = ("None", "nan", "NaN", "<NA>", "NaT")  # how tables in memory print a cell that is empty


def source_name(source: Any) -> str:
    """Return the path of a file or folder; a table in memory is called data."""
    return str(source) if isinstance(source, str | Path) else getattr(source, "source", "data")


def read_text(source: Any, context: int | None, where: Sequence[tuple[str, Any]] = ()) -> Runs:
    """Read the text of a file, a run folder, a folder of run folders, or a table in memory.

    `context` is the sequence length at which the state of run folders is counted. Of run folders that `where` leaves
    out by their name (column run) nothing is read. Raises UserError.
    """
    if not isinstance(source, str | Path):
        runs = read_table(source)
    elif (path := Path(source)).is_dir():
        from hybridtron.laws.data.run_folders import read_run_folders  # needs torch

        return read_run_folders(path, context, where)
    elif path.is_file():
        runs = _read_parquet(path) if _is_parquet(path) else _read_csv(path)
    else:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        close = nearest(path.name, beside)
        raise UserError(f"{path}: no such file or folder" + (f" (nearest: {close})" if close else ""))
    if not len(runs):
        raise UserError(f"{runs.source}: no rows; expected a header and at least one run")
    return runs


def read_table(table: Any, source: str | None = None) -> Runs:
    """Read a mapping of names to arrays, or a data frame: `table.columns` are its names, `table[name]` is a column."""
    source = source or source_name(table)
    if hasattr(table, "to_pydict"):  # pyarrow, whose `columns` are arrays
        table = table.to_pydict()
    if not isinstance(table, Mapping) and not hasattr(table, "columns"):
        raise UserError(
            f"data is of type {type(table).__name__}; expected a data frame, a dict of arrays, or the path "
            "of a CSV file, a parquet file or a run folder"
        )
    names = list(table if isinstance(table, Mapping) else table.columns)
    columns = text_columns({name: [_text(value) for value in _values(source, name, table[name])] for name in names})
    return Runs(columns, np.arange(1, common_length(source, columns) + 1), source, place="row")


def _values(source: str, name: Any, column: Any) -> list[Any]:
    array = np.asarray(column)
    if array.ndim != 1:
        raise UserError(f"{source}: column {str(name)!r} has {array.ndim} dimensions; expected one value for each run")
    return list(array.tolist())


def _text(value: Any) -> str:
    text = str(value).strip()
    return "" if text in MISSING and not isinstance(value, str) else text


def _read_csv(path: Path) -> Runs:
    """Read comma-separated text, or tab-separated in a .tsv file, with a header; blank lines are passed over."""
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
                        f"{path}, line {reader.line_num}: {plural(len(row), 'cell')}; expected {len(header)}, as in "
                        "the header"
                    )
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; expected comma-separated text") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {error}; expected comma-separated text in UTF-8, or a .parquet file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    columns = text_columns({name: [row[i] for row in rows] for i, name in enumerate(header)})
    return Runs(columns, np.array(lines), str(path))


def _is_parquet(path: Path) -> bool:
    """Return whether the first bytes or the name are those of a parquet file."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PAR1" or path.suffix.lower() in (".parquet", ".pq")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _read_parquet(path: Path) -> Runs:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: needs the package pyarrow; install hybridtron[parquet] or convert to CSV") from None
    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({str(error).splitlines()[0]})") from None
    return read_table(table, str(path))
