"""Rows of results in a folder: one line of JSON each, only ever added, so that a kill costs what was not yet written.

A last line that a kill cut short is left out, and cut off before the next row is written. Any other line that is no row
is left out too, and named.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError

RESULTS = "results.jsonl"
_LOCK = ".lock"

Row = dict[str, Any]
Key = tuple[str, ...]

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "architecture": str, "pattern": str, "fingerprint": str, "preset": str, "protocol": str, "accuracy": str,
    "selected_on": str, "notes": list,
    "parameters": int, "state_size": int, "num_cells": int,
    "task": str, "setting": dict, "lr": (int, float), "weight_decay": (int, float), "seed": int, "steps": int,
    "stopped": str, "test_micro": (int, float), "test_macro": (int, float), "select_micro": (int, float),
    "select_macro": (int, float), "curve": list,
}  # fmt: skip


def key(row: Row) -> Key:
    """What a row is the result of; two rows of the same key say the same."""
    setting = json.dumps(row["setting"], sort_keys=True)
    return (
        row["fingerprint"],
        row["protocol"],
        row["task"],
        setting,
        f"{row['lr']:g}",
        f"{row['weight_decay']:g}",
        str(row["seed"]),
    )


def read_rows(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows of a results folder, the first of each key, and a warning for every damaged line.

    Raises:
        UserError: where the folder has no results.
    """
    file = folder / RESULTS
    try:
        text = file.read_bytes()
    except OSError:
        raise UserError(f"{folder}: has no {RESULTS}: expected a folder that `hybridtron mad run` wrote") from None
    rows: dict[Key, Row] = {}
    warnings = []
    lines = text.split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line's end was cut short
        row = _parsed(line)
        if row is None:
            warnings.append(f"{file}, line {number}: damaged, left out")
        else:
            rows.setdefault(key(row), row)
    return list(rows.values()), warnings


def _parsed(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), kind) for name, kind in _FIELDS.items()):
        return None
    return row


@contextlib.contextmanager
def opened_for_adding(folder: Path) -> Iterator[ResultsWriter]:
    """The folder's results, made where there are none, claimed until the end of the block.

    Raises:
        UserError: where another process has the folder, or it cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("w")
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be written ({error.strerror})") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"--out {folder}: another process writes to it") from None
        file = folder / RESULTS
        file.touch()
        rows, warnings = read_rows(folder)
        with file.open("r+b") as stream:
            stream.truncate(stream.read().rfind(b"\n") + 1)
            stream.seek(0, os.SEEK_END)
            yield ResultsWriter(stream, rows, warnings)


class ResultsWriter:
    """`rows` and `warnings` as read at the start; `add` writes further ones."""

    def __init__(self, stream: Any, rows: Sequence[Row], warnings: list[str]) -> None:
        self.stream = stream
        self.rows = list(rows)
        self.warnings = warnings
        self._keys = {key(row) for row in rows}

    def has(self, wanted: Key) -> bool:
        return wanted in self._keys

    def add(self, rows: Iterable[Row]) -> None:
        """Write the rows whose key is new; they are on disk when this returns."""
        new = [row for row in rows if key(row) not in self._keys]
        self.stream.write(b"".join(json.dumps(row, allow_nan=False).encode() + b"\n" for row in new))
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.rows += new
        self._keys |= {key(row) for row in new}
