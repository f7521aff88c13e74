"""Writing a report folder: whole or not at all, and never over anything else.

A manifest inside names the files of the report; a folder that holds other files is refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from hybridtron.errors import UserError

MANIFEST = ".report.json"


def require_usable(out: Path) -> None:
    """Raise UserError unless `out` is new, an empty folder, or an earlier report and nothing more."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UserError(f"{out}: is a file; expected a new folder, an empty one or an earlier report")
    if out.resolve() == Path.cwd():
        raise UserError(f"{out}: is the current folder, which is replaced as a whole; expected another name")
    present = {path.name for path in out.iterdir()}
    foreign = sorted(present - _report_files(out))
    if foreign:
        shown = ", ".join(foreign[:3]) + (", ..." if len(foreign) > 3 else "")
        raise UserError(f"{out}: holds {shown}; expected a new folder, an empty one or an earlier report")


def publish(out: Path, files: Mapping[str, bytes]) -> None:
    """Make `out` hold exactly these files; an earlier report gives way only when the new one is complete."""
    require_usable(out)
    target = out.resolve()
    draft = target.with_name(f".{target.name}.new-{os.getpid()}")
    try:
        draft.mkdir(parents=True)
        for name, content in files.items():
            (draft / name).write_bytes(content)
        (draft / MANIFEST).write_text(json.dumps({"files": sorted(files)}) + "\n")
        _replace_folder(draft, target)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _report_files(folder: Path) -> set[str]:
    try:
        return {MANIFEST, *json.loads((folder / MANIFEST).read_text())["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _replace_folder(draft: Path, target: Path) -> None:
    """Rename the draft to the target; an earlier report is renamed first, and restored if that fails."""
    if not target.exists() or not any(target.iterdir()):
        os.replace(draft, target)
        return
    earlier = target.with_name(f".{target.name}.old-{os.getpid()}")
    os.replace(target, earlier)
    try:
        os.replace(draft, target)
    except OSError:
        os.replace(earlier, target)
        raise
    shutil.rmtree(earlier)
