"""Rows of results in a folder: one line of JSON each, only ever added, so that a kill costs what was not yet written.

A line that is no row is left out and named. A last line that a kill cut short is cut off before the next row is
written; one that lacks nothing but its line end counts.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import DAMAGED, Line, append_rows, lock, open_rows, read_lines
from hybridtron.mad.tasks.protocol import Setting, complete

RESULTS = "results.jsonl"
_LOCK = ".lock"

Row = dict[str, Any]
Key = tuple[str, ...]

_FIELDS: dict[str, type] = {
    "architecture": str, "pattern": str, "fingerprint": str, "preset": str, "protocol": str, "accuracy": str,
    "selected_on": str, "notes": list, "parameters": int, "state_size": int, "num_cells": int, "task": str,
    "setting": dict, "seed": int, "steps": int, "stopped": str, "curve": list,
}  # fmt: skip
_COUNTS = ("parameters", "num_cells", "steps", "planned_steps", "batch_size")
_NAMES = {str: "text", list: "list", int: "whole number", dict: "mapping"}
_KEY = ("fingerprint", "protocol", "task", "setting", "lr", "weight_decay", "seed")
_ACCURACIES = ("test_micro", "test_macro", "select_micro", "select_macro")


def key(row: Row) -> Key:
    """Return the identity of a row's measurement; rows of the same key are equal."""
    return make_key(*(row[name] for name in _KEY))


def make_key(
    fingerprint: str, protocol: str, task: str, setting: Setting, lr: float, weight_decay: float, seed: int
) -> Key:
    """Return the key of the row that this training gives; `setting` is complete."""
    text = json.dumps(dict(setting), sort_keys=True)
    return fingerprint, protocol, task, text, f"{lr:g}", f"{weight_decay:g}", str(seed)


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """Read the rows of a results folder: the first of each key, and a warning for every damaged line.

    Raises:
        UserError: where the folder has no results.
    """
    file = folder / RESULTS
    try:
        content = file.read_bytes()
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
    for name, kind in _FIELDS.items():
        if name not in row:
            return f"no {name}"
        if not _is(kind, row[name]):
            return f"{name} is no {_NAMES[kind]}"
    try:
        setting = complete(row["task"], row["setting"])
    except UserError as error:
        return str(error)
    sound = {
        "setting": setting == row["setting"],
        "accuracy": row["accuracy"] in ("micro", "macro"),
        "notes": all(_is(str, note) for note in row["notes"]),
        **{name: name not in row or (_is(int, row[name]) and row[name] >= 1) for name in _COUNTS},
        **{name: _is_number(row.get(name)) for name in ("lr", "weight_decay")},
        **{name: _is_number(row.get(name), most=1) for name in _ACCURACIES},
        "curve": row["curve"] and all(map(_is_point, row["curve"])),
    }
    wrong = next((name for name, is_so in sound.items() if not is_so), None)
    return row if wrong is None else f"{wrong} is not what training gives"


def _is(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_number(value: object, most: float = sys.float_info.max) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def _is_point(point: object) -> bool:
    """Return whether a point of a curve is valid: step, training loss if it is finite, both accuracies."""
    if not isinstance(point, list) or len(point) != 4:
        return False
    step, loss, *accuracies = point
    return (
        _is(int, step)
        and (loss is None or _is_number(loss))
        and all(_is_number(accuracy, most=1) for accuracy in accuracies)
    )


@contextlib.contextmanager
def opened_for_adding(folder: Path) -> Iterator[ResultsWriter]:
    """Open or create the results of a folder for appending, locked until the end of the block.

    Raises:
        UserError: where another process has the folder, or it cannot be written to, then or later.
    """
    with contextlib.ExitStack() as opened:
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if not lock(opened.enter_context((folder / _LOCK).open("w"))):
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
