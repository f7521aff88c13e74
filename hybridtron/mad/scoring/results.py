"""Rows of results in a folder: one line of JSON each, only ever added, so that a kill costs what was not yet written.

A line that is no row is left out and named. A last line that a kill cut short is cut off before the next row is
written; one that lacks nothing but its line end counts.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError, create_model

from hybridtron.errors import UserError
from hybridtron.files import (
    DAMAGED,
    Line,
    append_rows,
    as_path,
    lock,
    open_rows,
    open_to_write,
    read_lines,
    read_plain,
)
from hybridtron.mad.tasks.protocol import Setting, complete

RESULTS = "results.jsonl"
_LOCK = ".lock"

Row = dict[str, Any]
Key = tuple[str, ...]

_Share = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]
# A point is a step, the training loss if it is finite, both accuracies and, since procedure 4, the selecting loss.
_Point = (
    Annotated[tuple[int, _Amount | None, _Share, _Share, _Amount | None], Field(strict=False)]
    | Annotated[tuple[int, _Amount | None, _Share, _Share], Field(strict=False)]
)
_COLUMNS: dict[Any, tuple[str, ...]] = {
    str: ("architecture", "pattern", "fingerprint", "preset", "protocol", "selected_on", "task", "stopped"),
    Literal["micro", "macro"]: ("accuracy",),
    list[str]: ("notes",),
    int: ("seed",),
    int | None: ("state_size",),
    _Count: ("parameters", "num_cells", "steps"),
    _Amount: ("lr", "weight_decay"),
    _Share: ("test_micro", "test_macro", "select_micro", "select_macro"),
    Annotated[list[_Point], Field(min_length=1)]: ("curve",),
    dict[str, Any]: ("setting",),
}
_FIELDS: dict[str, Any] = {name: (kind, ...) for kind, names in _COLUMNS.items() for name in names}
_FIELDS |= dict.fromkeys(("planned_steps", "batch_size"), (_Count, 1))  # rows of the first versions have none
_RowModel = create_model("_RowModel", __config__=ConfigDict(strict=True, allow_inf_nan=False), **_FIELDS)
_KEY = ("fingerprint", "protocol", "task", "setting", "lr", "weight_decay", "seed")


def key(row: Row) -> Key:
    """Return the identity of a row's measurement; rows of the same key are equal."""
    return make_key(*(row[name] for name in _KEY))


def make_key(
    fingerprint: str, protocol: str, task: str, setting: Setting, lr: float, weight_decay: float, seed: int
) -> Key:
    """Return the key of the row that this training gives; `setting` is complete."""
    text = json.dumps(dict(setting), sort_keys=True)
    return fingerprint, protocol, task, text, f"{lr:g}", f"{weight_decay:g}", str(seed)


def read_rows(folder: str | Path) -> tuple[list[Row], list[str]]:
    """Read the rows of a results folder: the first of each key, and a warning for every damaged line.

    Raises:
        UserError: where the folder has no results.
    """
    folder = as_path(folder, "folder", "the path of a results folder")
    file = folder / RESULTS
    try:
        content = read_plain(file)
    except NotADirectoryError:
        raise UserError(f"{folder}: is a file; expected the folder that has it") from None
    except OSError:
        raise UserError(f"{folder}: has no {RESULTS}: expected a folder that `hybridtron mad run` wrote") from None
    return _distinct_rows(file, read_lines(content))


def _distinct_rows(file: Path, lines: Iterable[Line]) -> tuple[list[Row], list[str]]:
    """Return the first row of each key, and a warning for every damaged line."""
    rows: dict[Key, Row] = {}
    warnings = []
    for line in lines:
        row = _checked(line.value)
        if isinstance(row, str):
            why = "cut short" if line.is_cut else f"damaged ({row})"
            warnings.append(f"{file}, line {line.number}: {why}, left out")
        else:
            rows.setdefault(key(row), row)
    return list(rows.values()), warnings


def _checked(row: Any) -> Row | str:
    """Return the row of a line, or the reason why training cannot have given it."""
    if row is DAMAGED:
        return "no JSON"
    if not isinstance(row, dict):
        return "no row"
    try:
        _RowModel.model_validate(row)
        is_whole = complete(row["task"], row["setting"]) == row["setting"]
    except ValidationError as error:
        first = error.errors()[0]
        name = first["loc"][0]
        return f"no {name}" if first["type"] == "missing" else f"{name} is not what training gives"
    except UserError as error:
        return str(error)
    return row if is_whole else "setting is not what training gives"


@contextlib.contextmanager
def opened_for_adding(folder: Path) -> Iterator[ResultsWriter]:
    """Open or create the results of a folder for appending, locked until the end of the block.

    Raises:
        UserError: where another process has the folder, or it cannot be written to, then or later.
    """
    with contextlib.ExitStack() as opened:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not lock(opened.enter_context(open_to_write(folder / _LOCK))):
                raise UserError(f"out {folder}: another process writes to it")
            stream, lines = open_rows(folder / RESULTS)
            opened.enter_context(stream)
        rows, warnings = _distinct_rows(folder / RESULTS, lines)
        yield ResultsWriter(folder, stream, rows, warnings)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"out {folder}: cannot be written ({error.strerror})") from None


class ResultsWriter:
    """`rows` as read at the start, to which `add` adds, and the `warnings` of that reading."""

    def __init__(self, folder: Path, stream: io.FileIO, rows: Sequence[Row], warnings: list[str]) -> None:
        self.folder = folder
        self.stream = stream
        self.warnings = warnings
        self._by_key = {key(row): row for row in rows}

    @property
    def rows(self) -> list[Row]:
        return list(self._by_key.values())

    def has(self, wanted: Key) -> bool:
        return wanted in self._by_key

    def rows_of(self, wanted: Iterable[Key]) -> list[Row]:
        """Return the rows of keys, all of which must exist."""
        return [self._by_key[one] for one in wanted]

    def add(self, rows: Iterable[Row]) -> None:
        """Write the rows whose key is new; they are on disk when this returns.

        Raises:
            UserError: where they cannot be written.
        """
        new = {key(row): row for row in rows if not self.has(key(row))}
        with _writing(self.folder):
            append_rows(self.stream, new.values(), allow_nan=False)
        self._by_key |= new
