"""The git checkout that this package runs from.

Nothing here takes a lock of the checkout, which a process that ends in the middle would leave behind.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).parent
DIRTY = "-dirty"
ELSEWHERE = ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE")  # git names its own repository to the hooks that it runs
NOTE = "git.txt"  # beside a copy of the package: the commit of the checkout that it was copied from
_COMMIT = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64})(%b)?" % DIRTY.encode())  # SHA-1 or SHA-256


def commit() -> str | None:
    """Return the commit of the checkout, with DIRTY where tracked files differ; None outside one.

    Of a copy it is the one that was noted beside it, whatever repository the copy lies in.
    """
    if noted := _noted_commit():
        return noted
    is_tracked = _git("ls-files", "--", ".") != b""
    head = _git("rev-parse", "HEAD").decode().strip() if is_tracked else ""
    changed = head and _git("--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return head + DIRTY if changed else head or None


def _noted_commit() -> str | None:
    """Return the commit that was noted beside a copy; None for anything else, and in the root of a checkout."""
    try:
        content = (PACKAGE.parent / NOTE).read_bytes().strip()
    except OSError:
        return None
    is_commit = _COMMIT.fullmatch(content) and not (PACKAGE.parent / ".git").exists()
    return content.decode() if is_commit else None


def changes() -> bytes:
    """Return how the package's files differ from the commit."""
    return _git("-c", "diff.autoRefreshIndex=false", "diff", "--binary", "HEAD", "--", str(PACKAGE))


def _git(*arguments: str) -> bytes:
    """Return the output of git in the package's folder; empty where that is no checkout."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    env = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    try:
        return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL, env=env).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
