"""The record of a search on disk: rows that are only ever appended, shared by any number of workers.

    evaluations.jsonl   first what is searched, then proposals, claims, results and votes, a JSON object in each line
    store.lock          held while a worker reads and appends
    workers/ID          held by a worker as long as it lives

A kill at any moment loses at most a line that was not whole, which the next append removes; the work that it claimed is
open again, since the kernel lets go of a dead worker's lock. Locks are flock's: the folder must be on a file system
where they work between the machines that share it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hybridtron.errors import UserError
from hybridtron.files import (
    Line,
    append_rows,
    lock,
    open_rows,
    open_to_write,
    read_lines,
    read_plain,
    require_folder,
)

FORMAT = 1
SHOWN = 3  # differences that a refusal names
WAIT_SECONDS = 0.5  # of workers, between looks at the record while others have all that is left
EVALUATIONS, WORKERS, LOCK = "evaluations.jsonl", "workers", "store.lock"

Row = dict[str, Any]


class Store:
    """One worker's access to a search folder. Raises UserError where the folder holds another search, or damage.

    Inside `with store.locked() as rows`, `rows` are all rows so far, and no other worker appends any.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.file = folder / EVALUATIONS
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        header = {"row": "search", "format": FORMAT, **json.loads(json.dumps(identity))}
        self._refuse_another(header)
        require_folder(folder / WORKERS)
        try:
            (folder / WORKERS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"search folder {folder}: cannot be made: {error.strerror}") from None
        self._own_lock = open_to_write(self._worker_file(self.worker))
        lock(self._own_lock, wait=True)
        try:
            with self.locked() as rows:
                if not rows:
                    self.append(header)
            self._refuse_another(header)  # two searches may have begun here at once
        except UserError:
            self.close()
            raise

    def _refuse_another(self, header: Row) -> None:
        """Raise UserError where the folder holds something else than this search, without touching it."""
        try:
            line = b"".join(read_plain(self.file).partition(b"\n")[:2])
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
        first.pop("time", None)
        was, now = first.get("seeds"), header.get("seeds", [])
        if isinstance(was, list) and all(seed in now for seed in was):
            first["seeds"] = now  # they may be added, and stand in any order
        if differences := list(_differences(first, header)):
            more = f", and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
            raise UserError(
                f"search folder {self.folder}: holds another search: {'; '.join(differences[:SHOWN])}{more}; "
                "expected the same, or another folder"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[list[Row]]:
        """Lock the record until the block ends; yield all rows so far, to which `append` adds."""
        with open_to_write(self.folder / LOCK) as file:
            lock(file, wait=True)
            self._stream, lines = open_rows(self.file)
            with self._stream:
                self._rows = [_row(self.file, line) for line in lines if not line.is_cut]
                yield self._rows

    def append(self, *rows: Row) -> None:
        """Append rows in one write; they are on disk when this returns. Needs the lock."""
        timed = [{**row, "time": round(time.time(), 3)} for row in rows]
        append_rows(self._stream, timed)
        self._rows += timed

    def close(self) -> None:
        self._worker_file(self.worker).unlink(missing_ok=True)
        self._own_lock.close()

    def _worker_file(self, worker: str) -> Path:
        return self.folder / WORKERS / worker

    def is_alive(self, worker: str) -> bool:
        """Return whether that worker still holds its lock."""
        if worker == self.worker:
            return True
        if Path(worker).name != worker:  # no worker wrote that row; its file would lie in another folder
            return False
        own_file = self._worker_file(worker)
        if not os.path.lexists(own_file):
            return False
        with open_to_write(own_file) as file:  # of a link it raises UserError
            if not lock(file):
                return True
            own_file.unlink(missing_ok=True)
        return False


def read_header(folder: Path) -> Row | None:
    """Return the first row of a folder's record, which says what is searched; None where it has none yet."""
    try:
        line = b"".join(read_plain(folder / EVALUATIONS).partition(b"\n")[:2])
    except OSError:
        return None
    return _row(folder / EVALUATIONS, read_lines(line)[0]) if line.endswith(b"\n") else None


def _row(path: Path, line: Line) -> Row:
    """Return the row of a line; raise UserError where it holds none."""
    if not isinstance(line.value, dict) or "row" not in line.value:
        raise UserError(f"{path}:{line.number}: damaged line; expected a JSON object with a key row, or no such line")
    return line.value


def _differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys whose values differ, with both values, in words."""
    for key in dict.fromkeys((*was, *now)):
        old, new = was.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} is {json.dumps(old)} there, {json.dumps(new)} here"
