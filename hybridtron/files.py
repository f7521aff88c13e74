"""Files that survive a kill at any moment: atomic replacement, append-only rows of JSON, locks.

What is written goes into plain files only, never through a link: a folder may come from someone else.
"""

from __future__ import annotations

import errno
import fcntl
import io
import json
import math
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeGuard

from hybridtron.errors import UserError

DAMAGED = object()  # value of a line that is not JSON


def as_path(value: object, name: str, expected: str = "a path") -> Path:
    """Return a path that a caller gave as parameter `name`; raises UserError for what is neither text nor a path."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name} = {value!r}: expected {expected}")
    return Path(value)


def read_plain(path: Path) -> bytes:
    """Read a plain file, or one that a link leads to. Raises UserError for a device or a pipe, which may never end."""
    with open_to_read(path) as file:
        return file.read()


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty where it is missing or damaged."""
    try:
        content = json.loads(read_plain(path))
    except (OSError, ValueError, RecursionError, UserError):
        return {}
    return content if isinstance(content, dict) else {}


def open_to_read(path: Path) -> IO[bytes]:
    """Open a plain file, or one that a link leads to, for reading. Raises UserError for a device or a pipe."""
    return open(_open_plain(path, os.O_RDONLY), "rb")


def open_to_write(path: Path, flags: int = 0) -> io.FileIO:
    """Open a plain file for reading and writing as it is, creating it if it is missing.

    Raises UserError for a link, symbolic or hard, a device or a pipe.
    """
    return io.FileIO(_open_plain(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | flags), "r+")


def _open_plain(path: Path, flags: int) -> int:
    """Return a descriptor of a plain file, without waiting for the other end of a pipe."""
    try:
        descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link that is not followed; a pipe that nobody reads
            raise _not_plain(path) from None
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise _not_plain(path)
    if flags & os.O_RDWR and status.st_nlink > 1:
        os.close(descriptor)
        raise UserError(
            f"{path}: is {status.st_nlink - 1} other file(s) too (hard links), which would be written to; expected a "
            "plain file: put a copy in its place"
        )
    return descriptor


def _not_plain(path: Path) -> UserError:
    return UserError(f"{path}: is a link, a device, a pipe or a folder; expected a plain file")


def replace_file(path: Path, content: str | bytes) -> None:
    """Write the whole file or nothing, also when the machine stops in the middle. Raises UserError, OSError."""
    draft = path.with_name(path.name + ".new")
    content = content.encode() if isinstance(content, str) else content
    require_plain(draft)
    draft.unlink(missing_ok=True)  # a killed run's; it may be a second name of a file elsewhere
    try:
        with open_to_write(draft, os.O_EXCL) as file:
            write_all(file, content)
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:  # of the draft, whose name the caller does not know
        draft.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def new_file(path: Path, name: str = "out") -> Iterator[IO[bytes]]:
    """Open a new file for the block to write, and give it its name when the block ends; nothing is left if it raises.

    `name` is the caller's parameter, for the messages. Raises UserError where something has the path, before or after
    the block, or no file can be made there, OSError where it cannot be written, such as on a full disk.
    """
    if os.path.lexists(path):
        raise _exists(path, name)
    draft = path.with_name(f".{path.name}.new-{os.getpid()}")
    try:
        draft.unlink(missing_ok=True)  # of a killed process that had this number
        stream = draft.open("xb")
    except OSError as error:
        raise UserError(f"{name} = {path}: cannot be written ({error.strerror}); expected a new file in a folder that "
                        "there is") from None  # fmt: skip
    try:
        with stream:
            yield stream
        _give_name(draft, path, name)
    except OSError as error:
        if error.errno is None or error.filename not in (None, os.fspath(draft)):  # not of the draft
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        draft.unlink(missing_ok=True)


def _give_name(draft: Path, path: Path, name: str) -> None:
    """Give a file a path that nothing has. Raises UserError where something has it, OSError."""
    try:
        os.link(draft, path)  # which replaces nothing, as a rename does
    except OSError:
        if os.path.lexists(path):
            raise _exists(path, name) from None
        os.replace(draft, path)  # on a file system without hard links


def _exists(path: Path, name: str) -> UserError:
    return UserError(f"{name} = {path}: exists already; expected the name of a new file")


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Delete a folder; of a link to one, the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder)


def require_plain(file: Path) -> None:
    """Raise UserError where something else than a plain file has the path of a file to write."""
    if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
        raise _not_plain(file)


def require_folder(folder: Path) -> None:
    """Raise UserError where something else than a folder, or a link, has the path of a folder to write into."""
    if os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode):
        raise UserError(f"{folder}: is a link or a file; expected a folder")


def looked_in(path: Path) -> str:
    """Return ` in FOLDER` for a relative path, to follow a message that it is missing."""
    return "" if path.is_absolute() else f" in {Path.cwd()}"


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


def is_locked(path: Path) -> bool:
    """Return whether a process holds the `lock` of a file; False where the file is missing or cannot be locked.

    Looking takes the lock for a moment, shared with others that look.
    """
    try:
        with open_to_read(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


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


def read_last_row(path: Path) -> dict[str, Any] | None:
    """Read the last whole row of a file of JSON rows without reading the rest; None where there is none.

    Raises UserError for a device or a pipe.
    """
    try:
        file = open_to_read(path)
    except FileNotFoundError:
        return None
    with file:
        size = file.seek(0, os.SEEK_END)
        length = 0
        while length < size:
            length = min(size, max(1 << 16, 4 * length))
            file.seek(size - length)
            lines = read_lines(file.read(length))
            for line in reversed(lines if length == size else lines[1:]):
                if isinstance(line.value, dict):
                    return line.value
    return None


def is_number(value: object) -> TypeGuard[int | float]:
    """Return whether a value of JSON is a number, finite as a float, and no truth value."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def json_text(value: Any, indent: int | None = 2) -> str:
    """Return a value as JSON. JSON has no NaN and no infinite numbers: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    """Return a value of JSON with None in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_rows(path: Path) -> tuple[io.FileIO, list[Line]]:
    """Open a file of JSON rows for `append_rows`, creating it if it is missing; also return the lines it had.

    A last line that is cut is removed, and a missing line end added.
    """
    stream = open_to_write(path, os.O_APPEND)
    content = stream.readall()
    lines = read_lines(content)
    if lines and lines[-1].is_cut:
        stream.truncate(content.rfind(b"\n") + 1)
    elif content and not content.endswith(b"\n"):
        stream.write(b"\n")
    return stream, lines


def append_rows(stream: io.FileIO, rows: Iterable[dict[str, Any]], allow_nan: bool = True, sync: bool = True) -> None:
    """Append a line of JSON for each row. With `sync` they are on disk when this returns."""
    write_all(stream, b"".join(json.dumps(row, allow_nan=allow_nan).encode() + b"\n" for row in rows))
    if sync:
        os.fsync(stream.fileno())


def append_text(path: Path, text: str) -> None:
    """Append text to a plain file, creating it if it is missing."""
    with open_to_write(path, os.O_APPEND) as file:
        write_all(file, text.encode())


def write_all(stream: io.FileIO, content: bytes | memoryview) -> None:
    """Write all of the content. Raises OSError."""
    left = memoryview(content)
    while left:
        left = left[stream.write(left) :]
