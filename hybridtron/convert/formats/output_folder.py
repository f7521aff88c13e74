"""A folder that has its name only once it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.files import remove_folder, sync_folder
from hybridtron.reporting.numbers import byte_size

PARTIAL = ".partial"
ROOM = 2**20  # bytes that small files may take beside the tensors


@contextlib.contextmanager
def output_folder(folder: Path, size_bytes: int = 0) -> Iterator[Path]:
    """Make a folder for the block to write into, and give it its name `folder` when the block ends.

    Until then it is `NAME.partial`. Where the block raises, or the process gets SIGINT or SIGTERM, it is removed; one
    that a killed process left behind is replaced.

    Args:
        folder: what must not exist yet.
        size_bytes: how much will be written into it.

    Raises:
        UserError: where the folder exists, cannot be made, is being written by another process, or the disk has too
            little room.
    """
    if not folder.name:
        raise UserError(f"{str(folder)!r}: expected the name of a new folder")
    draft = folder.with_name(folder.name + PARTIAL)
    if os.path.lexists(folder):
        raise UserError(f"{folder}: exists: expected the name of a new folder")
    _check_room(folder, size_bytes + ROOM)
    with _made_alone(draft), _signals_as_interrupt():
        try:
            yield draft
            sync_folder(draft)
            if os.path.lexists(folder):
                raise UserError(f"{folder}: was made meanwhile: expected the name of a new folder")
            os.rename(draft, folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        sync_folder(folder.absolute().parent)


def _check_room(folder: Path, size_bytes: int) -> None:
    """Raise UserError where the disk of a folder to make has less than so many bytes free."""
    there = next(parent for parent in folder.absolute().parents if os.path.exists(parent))
    free = shutil.disk_usage(there).free
    if free < size_bytes:
        raise UserError(f"{folder}: needs {byte_size(size_bytes)} of disk; {byte_size(free)} are free")


@contextlib.contextmanager
def _made_alone(draft: Path) -> Iterator[None]:
    """Make an empty folder that no other process writes into until the block ends. Raises UserError."""
    try:
        draft.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(draft):
            with _locked(draft):  # else another process is at work in it
                remove_folder(draft)
        draft.mkdir()
    except OSError as error:
        files = [str(parent) for parent in draft.parents if os.path.exists(parent) and not os.path.isdir(parent)]
        reason = f"{files[0]} is no folder" if files else error.strerror
        raise UserError(f"{draft.with_name(draft.name.removesuffix(PARTIAL))}: cannot be made: {reason}") from None
    with _locked(draft):
        yield


@contextlib.contextmanager
def _locked(draft: Path) -> Iterator[None]:
    """Lock a folder. Raises UserError where another process has it, or it is no folder."""
    descriptor = os.open(draft, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UserError(f"{draft}: another process writes into it: give another name") from None
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _signals_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt at SIGTERM and SIGHUP in the block, where they would end the process at once."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(each) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
