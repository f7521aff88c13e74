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
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hybridtron.errors import UserError

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
        fcntl.flock(self._alive, fcntl.LOCK_EX)
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
        first = _read(self.file, 1, line)
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
        """All rows so far, and the only right to append until the block ends."""
        with (self.folder / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.file.open("a+b") as stream:
                yield Transaction(stream, self.file, self._is_alive)

    def close(self) -> None:
        self._worker_file(self.worker).unlink(missing_ok=True)
        self._alive.close()

    def _worker_file(self, worker: str) -> Path:
        return self.folder / WORKERS / worker

    def _is_alive(self, worker: str) -> bool:
        """Whether that worker still holds its file."""
        if worker == self.worker:
            return True
        try:
            with self._worker_file(worker).open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._worker_file(worker).unlink(missing_ok=True)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False


class Transaction:
    """What a worker reads and appends while it holds the lock."""

    def __init__(self, stream: BinaryIO, path: Path, is_alive: Callable[[str], bool]) -> None:
        self._stream, self._is_alive = stream, is_alive
        self._known: dict[str, bool] = {}
        stream.seek(0)
        content = stream.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):  # a line that a kill cut short
            stream.truncate(whole)
        self.rows = [_read(path, number, line) for number, line in enumerate(content[:whole].splitlines(), start=1)]

    def append(self, row: Row) -> None:
        """On disk before this returns."""
        row = {**row, "time": round(time.time(), 3)}
        self._stream.write(json.dumps(row).encode() + b"\n")
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self.rows.append(row)

    def is_alive(self, worker: str) -> bool:
        if worker not in self._known:
            self._known[worker] = self._is_alive(worker)
        return self._known[worker]


def _read(path: Path, number: int, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or "row" not in row:
        raise UserError(f"{path}:{number}: damaged line; expected a JSON object with a key row, or no such line")
    return row


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both."""
    for key in dict.fromkeys((*was, *now)):
        if not prefix and key == "time":
            continue
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}", old, new
