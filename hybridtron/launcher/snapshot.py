"""Copies of the code and of the environment that a job runs with."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hybridtron import __version__
from hybridtron.checkout import DIRTY, NOTE, PACKAGE, changes, commit
from hybridtron.files import remove_folder, replace_file
from hybridtron.launcher.environment_variables import recorded_environment
from hybridtron.launcher.private_files import OTHERS_WRITE

LARGEST_DIFF = 5_000_000  # bytes of uncommitted changes that are kept
NOTES = (NOTE, "changes.diff")  # beside the package in its copy

IGNORED = re.compile(r"/__pycache__/|\.pyc$|\.so$|/\.[^/]*$")


def write_environment(folder: Path) -> None:
    """Write where and with what a job was launched into `folder`."""
    content = {
        "time": time.time(),
        "host": socket.gethostname(),
        "python": sys.version,
        "executable": sys.executable,
        "hybridtron": __version__,
        "git": commit(),
        "variables": recorded_environment(),
    }
    replace_file(folder / "environment.json", json.dumps(content, indent=2) + "\n")


def copy_code(folder: Path) -> Path:
    """Copy the package into `folder`/DIGEST, with the commit and the changes since it; return that folder.

    The digest is of the content: code that another job runs from is never replaced. An existing copy is used where it
    holds the package and nothing else, and notes the commit of now; a changed one, perhaps with code of someone else,
    is left, and the package copied to DIGEST.2, and so on.
    """
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and not IGNORED.search(path.as_posix()))
    digest = hashlib.sha256()
    contents = {path.relative_to(PACKAGE.parent): path.read_bytes() for path in files}
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    name = digest.hexdigest()[:16]
    final = next(
        path
        for path in (folder / (f"{name}.{number}" if number > 1 else name) for number in itertools.count(1))
        if not os.path.lexists(path) or _is_copy(path, contents)
    )
    if final.exists():
        _write_notes(final)
        return final
    draft = folder / f"{name}.new-{os.getpid()}"
    if os.path.lexists(draft):
        remove_folder(draft)
    draft.mkdir()
    for path, content in contents.items():
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_bytes(content)
    _write_notes(draft)
    os.replace(draft, final)
    return final


def _write_notes(copy: Path) -> None:
    """Write the commit and the changes since it beside a copy; what is noted so already stays untouched."""
    head = commit()
    diff = changes()[:LARGEST_DIFF] if head and head.endswith(DIRTY) else None
    for name, content in zip(NOTES, (f"{head or 'no git checkout'}\n".encode(), diff), strict=True):
        file = copy / name
        if content is None:
            file.unlink(missing_ok=True)
        elif not file.exists() or file.read_bytes() != content:
            replace_file(file, content)


def _is_copy(root: Path, contents: Mapping[Path, bytes]) -> bool:
    """Return whether a folder holds exactly these files, and the notes of git, in folders that only we can write to."""
    folders = {parent for path in contents for parent in path.parents}
    for path in itertools.chain([root], root.rglob("*")):  # lazily: the root may be a link
        status, name = path.lstat(), path.relative_to(root)
        if status.st_uid != os.geteuid() or status.st_mode & OTHERS_WRITE:
            return False
        if stat.S_ISDIR(status.st_mode) != (name in folders):
            return False
        if name not in folders and not (stat.S_ISREG(status.st_mode) and (name in contents or str(name) in NOTES)):
            return False
    try:
        return all((root / path).read_bytes() == content for path, content in contents.items())
    except FileNotFoundError:
        return False
