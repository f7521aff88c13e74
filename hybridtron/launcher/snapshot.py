"""Copies of the code and of the environment that a job runs with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from hybridtron import __version__
from hybridtron.files import remove_folder, replace_file

PACKAGE = Path(__file__).parents[1]
LARGEST_DIFF = 5_000_000  # bytes of uncommitted changes that are kept

IGNORED = re.compile(r"/__pycache__/|\.pyc$|\.so$|/\.[^/]*$")

# Variables that change how a job runs. Everything else of the environment may be private, and is left out.
RECORDED = re.compile(
    r"(CUDA|NCCL|TORCH|PYTORCH|GLOO|OMP|MKL|KMP|FI|UCX|NVTE|TRITON|HYBRIDTRON|SLURM|SBATCH|PYTHON|LD|VIRTUAL|CONDA)"
    r"_?[A-Z0-9_]*|PATH|HOSTNAME|LANG|TZ"
)
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CRED|AUTH|COOKIE|SESSION|PRIVATE|JWT", re.IGNORECASE)


def recorded_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables that say how a job runs, without those whose name looks like that of a secret."""
    names = (name for name in sorted(environment) if RECORDED.fullmatch(name) and not SECRET.search(name))
    return {
        name: environment[name] for name in names if "://" not in environment[name]
    }  # an address may hold a password


def write_environment(folder: Path) -> None:
    """Write where and with what a job was launched into `folder`."""
    content = {
        "time": time.time(),
        "host": socket.gethostname(),
        "python": sys.version,
        "executable": sys.executable,
        "hybridtron": __version__,
        "git": git_state()[0],
        "variables": recorded_environment(),
    }
    replace_file(folder / "environment.json", json.dumps(content, indent=2) + "\n")


def copy_code(folder: Path) -> Path:
    """Copy the package as it is into `folder`/DIGEST, with the commit and the changes since it; return that folder.

    The digest is of the content: code that another job runs from is never replaced.
    """
    files = sorted(path for path in PACKAGE.rglob("*") if path.is_file() and not IGNORED.search(path.as_posix()))
    digest = hashlib.sha256()
    contents = {path.relative_to(PACKAGE.parent): path.read_bytes() for path in files}
    for path, content in contents.items():
        digest.update(f"{path}\0{len(content)}\0".encode() + content)
    final = folder / digest.hexdigest()[:16]
    if final.is_dir() and not final.is_symlink():
        return final
    draft = folder / f"{final.name}.new-{os.getpid()}"
    if os.path.lexists(draft):
        remove_folder(draft)
    draft.mkdir()
    for path, content in contents.items():
        (draft / path).parent.mkdir(parents=True, exist_ok=True)
        (draft / path).write_bytes(content)
    commit, changes = git_state()
    replace_file(draft / "git.txt", f"{commit or 'no git checkout'}\n")
    if changes:
        replace_file(draft / "changes.diff", changes)
    os.replace(draft, final)
    return final


def git_state() -> tuple[str | None, bytes]:
    """Return the commit of the package's checkout, with -dirty where files differ, and their differences."""
    commit = _git("describe", "--always", "--abbrev=40", "--dirty", "--exclude=*").decode().strip()
    changes = _git("diff", "--binary", "HEAD", "--", str(PACKAGE)) if commit.endswith("-dirty") else b""
    return commit or None, changes[:LARGEST_DIFF]


def _git(*arguments: str) -> bytes:
    """Return the output of git in the package's folder; empty where that is no checkout."""
    command = ["git", "-C", str(PACKAGE), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.CalledProcessError):
        return b""
