"""Damage to checkpoints, and folders that cannot be written to; each can be undone by a process outside the run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

BALLAST = "ballast"
SIZE_OF_DISK = 48 * 2**20  # bytes of the small file system


def newest_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoints of a run that have their final names, newest first."""
    return sorted((path for path in run.glob("step_" + "[0-9]" * 8) if path.is_dir()), reverse=True)


def flip_bit(file: Path, place: float) -> None:
    """Flip the bit at a fraction of a file's length."""
    content = bytearray(file.read_bytes())
    bit = int(place * 8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    _rewrite(file, bytes(content))


def truncate(file: Path, place: float) -> None:
    """Cut a file at a fraction of its length."""
    content = file.read_bytes()
    _rewrite(file, content[: int(place * len(content))])


def _rewrite(file: Path, content: bytes) -> None:
    """Replace the content of a file in place, as a disk that loses data does."""
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def some_file(checkpoint: Path, name: str, place: float) -> Path:
    """Return the named file of a checkpoint; where there is none, one drawn from all."""
    if (checkpoint / name).is_file():
        return checkpoint / name
    files = sorted(path for path in checkpoint.iterdir() if path.is_file())
    return files[int(place * len(files))]


def fill_disk(folder: Path) -> None:
    """Fill the file system of a folder to the last byte."""
    with (folder / BALLAST).open("wb", buffering=0) as file:
        for size in (2**20, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def make_read_only(folder: Path, read_only: bool = True) -> None:
    """Let nothing be created or replaced in a folder, or allow it again. Root, who ignores modes, sets an attribute."""
    if os.geteuid():
        folder.chmod(0o555 if read_only else 0o755)
    else:
        subprocess.run(["chattr", "+i" if read_only else "-i", str(folder)], check=read_only, capture_output=True)


def hidden(folder: Path) -> Path:
    """Return where a run folder is while it has vanished."""
    return folder.with_name(f"{folder.name}.vanished")


def vanish(folder: Path) -> None:
    """Move a run folder away."""
    os.replace(folder, hidden(folder))


def reappear(folder: Path) -> None:
    """Move a run folder back, over whatever has been made in its place."""
    if hidden(folder).is_dir():
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(hidden(folder), folder)


def _copies(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.copies")


def copy_checkpoints(folder: Path) -> None:
    """Copy all checkpoints of a run aside, before all of them are damaged."""
    shutil.rmtree(_copies(folder), ignore_errors=True)
    for checkpoint in newest_checkpoints(folder):
        shutil.copytree(checkpoint, _copies(folder) / checkpoint.name)


def restore_copies(folder: Path) -> bool:
    """Put the copies in the places of the checkpoints; return False where there are none."""
    if not _copies(folder).is_dir():
        return False
    for copy in _copies(folder).iterdir():
        shutil.rmtree(folder / copy.name, ignore_errors=True)
        os.replace(copy, folder / copy.name)
    _copies(folder).rmdir()
    return True


def undo(folder: Path) -> None:
    """End every fault of a run folder that has lasted longer than the processes that it hit."""
    reappear(folder)
    if folder.is_dir():
        make_read_only(folder, read_only=False)
    for place in (folder, folder.parent):
        (place / BALLAST).unlink(missing_ok=True)


def mount_small_disk(folder: Path) -> bool:
    """Mount a small file system in memory at a folder; return False where that is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_OF_DISK}", "faults", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except OSError:
        return False


def unmount(folder: Path) -> None:
    """Unmount a small file system."""
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)
