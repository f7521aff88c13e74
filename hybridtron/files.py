"""Files that survive a kill at any moment: atomic replacement, append-only rows of JSON, locks."""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

DAMAGED = object()  # value of a line that is not JSON


def replace_text(path: Path, text: str) -> None:
    """Write the whole file or nothing, also when the machine stops in the middle."""
    draft = path.with_name(path.name + ".new")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def lock(file: IO[Any], wait: bool = False) -> bool:
    """Take the exclusive flock of an open file until it is closed; return False where another process has it.

    With `wait`, wait for it instead. flock must work on the file system, between the machines that share it. Raises
    OSError where the file cannot be locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@dataclass(frozen=True)
class Line:
    """One line of a file of JSON rows, counted from 1; `value` is DAMAGED where it is not JSON."""

    number: int
    value: Any
    is_cut: bool  # the last line, without line end and not JSON: its writer was killed


def read_lines(content: bytes) -> list[Line]:
    """Parse a file of JSON rows. A last line that lacks nothing but its line end counts."""
    lines = content.split(b"\n")
    if not lines[-1]:
        del lines[-1]
    last = len(lines) if not content.endswith(b"\n") else 0
    values = [_parse(line) for line in lines]
    return [Line(number, value, value is DAMAGED and number == last) for number, value in enumerate(values, start=1)]


def _parse(line: bytes) -> Any:
    """Return the JSON value of a line, or DAMAGED."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return DAMAGED


def open_rows(path: Path) -> tuple[io.FileIO, list[Line]]:
    """Open a file of JSON rows for `append_rows`, creating it if it is missing; also return the lines it had.

    A last line that is cut is removed, and a missing line end added.
    """
    stream = io.FileIO(path, "a+")
    stream.seek(0)
    content = stream.readall()
    lines = read_lines(content)
    if lines and lines[-1].is_cut:
        stream.truncate(content.rfind(b"\n") + 1)
    elif content and not content.endswith(b"\n"):
        stream.write(b"\n")
    return stream, lines


def append_rows(stream: io.FileIO, rows: Iterable[dict[str, Any]], allow_nan: bool = True, sync: bool = True) -> None:
    """Append a line of JSON for each row. With `sync` they are on disk when this returns."""
    left = memoryview(b"".join(json.dumps(row, allow_nan=allow_nan).encode() + b"\n" for row in rows))
    while left:
        left = left[stream.write(left) :]
    if sync:
        os.fsync(stream.fileno())
