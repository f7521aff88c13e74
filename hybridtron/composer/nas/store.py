"""The record of a search on disk: rows that are only ever appended, shared by any number of workers.

    evaluations.jsonl   first what is searched, then proposals, claims and results, a JSON object in each line
    store.lock          held while a worker reads and appends
    workers/ID          held by a worker as long as it lives

A kill at any moment loses at most a line that was not whole, which the next append removes; the work that it claimed is
open again, since the kernel lets go of a dead worker's lock. Locks are flock's: the folder must be on a file system
where they work between the machines that share it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import Line, append_rows, lock, open_rows, read_lines

FORMAT = 1
SHOWN = 3  # differences that a refusal names
EVALUATIONS, WORKERS, LOCK = "evaluations.jsonl", "workers", "store.lock"

Row = dict[str, Any]


class Store:
    """One worker's access to a search folder. Raises UserError where the folder holds another search, or damage."""

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.file = folder / EVALUATIONS
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        header = {"row": "search", "format": FORMAT, **json.loads(json.dumps(identity))}
        self._refuse_another(header)
        try:
            (folder / WORKERS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"search folder {folder}: cannot be made: {error.strerror}") from None
        self._alive = self._worker_file(self.worker).open("w")
        lock(self._alive, wait=True)
        try:
            with self.transaction() as transaction:
                if not transaction.rows:
                    transaction.append(header)
            self._refuse_another(header)  # two searches may have begun here at once
        except UserError:
            self.close()
            raise

    def _refuse_another(self, header: Row) -> None:
        """Raise UserError where the folder holds something else than this search, without touching it."""
        try:
            with self.file.open("rb") as stream:
                line = stream.readline()
        except FileNotFoundError:
            names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
            # Other workers that start with this one may have made these.
            if EVALUATIONS in names:
                self._refuse_another(header)
            elif names - {WORKERS, LOCK}:
                raise UserError(
                    f"search folder {self.folder}: holds something else; expected a new folder, or that of a search"
                ) from None
            return
        except OSError as error:
            raise UserError(f"search folder {self.folder}: cannot be read: {error.strerror}") from None
        if not line.endswith(b"\n"):  # a worker was killed, or is busy, writing the first line
            return
        first = _row(self.file, read_lines(line)[0])
        if first["row"] != "search" or first.get("format") != FORMAT:
            raise UserError(f"{self.file}:1: expected the beginning of a search of format {FORMAT}")
        differences = [
            f"{key} is {json.dumps(was)} there, {json.dumps(now)} here" for key, was, now in _differences(first, header)
        ]
        if differences:
            more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise UserError(
                f"search folder {self.folder}: holds another search: {'; '.join(differences[:SHOWN])}{more}; "
                "expected the same, or another folder"
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Lock the record until the block ends; give all rows so far, and append."""
        with (self.folder / LOCK).open("w") as file:
            lock(file, wait=True)
            stream, lines = open_rows(self.file)
            with stream:
                rows = [_row(self.file, line) for line in lines if not line.is_cut]
                yield Transaction(stream, rows, self._is_alive)

    def close(self) -> None:
        self._worker_file(self.worker).unlink(missing_ok=True)
        self._alive.close()

    def _worker_file(self, worker: str) -> Path:
        return self.folder / WORKERS / worker

    def _is_alive(self, worker: str) -> bool:
        """Return whether that worker still holds its lock."""
        if worker == self.worker:
            return True
        try:
            with self._worker_file(worker).open("r+") as file:
                if not lock(file):
                    return True
                self._worker_file(worker).unlink(missing_ok=True)
        except FileNotFoundError:
            pass
        return False


class Transaction:
    """What a worker reads and appends while it holds the lock."""

    def __init__(self, stream: io.FileIO, rows: list[Row], is_alive: Callable[[str], bool]) -> None:
        self.rows = rows
        self._stream, self._is_alive = stream, is_alive
        self._known: dict[str, bool] = {}

    def append(self, row: Row) -> None:
        """Append a row; it is on disk when this returns."""
        row = {**row, "time": round(time.time(), 3)}
        append_rows(self._stream, [row])
        self.rows.append(row)

    def is_alive(self, worker: str) -> bool:
        if worker not in self._known:
            self._known[worker] = self._is_alive(worker)
        return self._known[worker]


def _row(path: Path, line: Line) -> Row:
    """Return the row of a line; raise UserError where it holds none."""
    if not isinstance(line.value, dict) or "row" not in line.value:
        raise UserError(f"{path}:{line.number}: damaged line; expected a JSON object with a key row, or no such line")
    return line.value


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted keys whose values differ, with both values."""
    for key in dict.fromkeys((*was, *now)):
        if not prefix and key == "time":
            continue
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
