"""Files and folders of jobs, which no other user may write to: they hold commands that jobs run."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hybridtron.errors import UserError
from hybridtron.files import require_folder

OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Make files in the block that only their owner can write, whatever the umask is."""
    before = os.umask(0o077)
    os.umask(before | 0o022)
    try:
        yield
    finally:
        os.umask(before)


def make_folder(folder: Path) -> Path:
    """Make a folder that others cannot write to, or an existing one so, and return it.

    Raises UserError for a link or a folder of another user in its place.
    """
    require_folder(folder)
    with private_files():
        folder.mkdir(parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.geteuid():
        raise UserError(f"{folder}: belongs to another user (uid {status.st_uid}); expected a folder of your own")
    if status.st_mode & OTHERS_WRITE:
        folder.chmod(stat.S_IMODE(status.st_mode) & ~OTHERS_WRITE)
    return folder
