"""A corpus that needs no download: the sources of the running interpreter's standard library."""

import os
import platform
import shutil
import sysconfig
import tempfile
from collections.abc import Callable
from pathlib import Path

from hybridtron.data.preprocessing.corpus import prepare
from hybridtron.data.preprocessing.report import REPORT_NAME
from hybridtron.data.preprocessing.sources import SourceList, source_of
from hybridtron.errors import UserError

# Installed packages, and tests: half the library, with generated tables and files that are wrong on purpose.
EXCLUDED_FOLDERS = frozenset({"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"})


def standard_library_sources() -> SourceList:
    """Find the library's .py files in the order of their relative paths, without EXCLUDED_FOLDERS.

    Left out as well: _sysconfigdata*.py, which the build writes with this machine's paths. Raises UserError where the
    interpreter came without sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in EXCLUDED_FOLDERS and not name.startswith("config-")]
        found += [Path(parent, name).relative_to(root).as_posix() for name in files if name.endswith(".py")]
    names = sorted(name for name in found if not name.startswith("_sysconfigdata"))
    if not names:
        raise UserError(f"this Python has no library sources in {root}; prepare a corpus with tools/prepare_data.py")
    return SourceList([source_of(root / name, name) for name in names])


def prepare_standard_library(folder: Path = Path("data"), announce: Callable[[str], None] = lambda text: None) -> Path:
    """Prepare the library byte by byte in `folder`/stdlib-VERSION-byte, once, and returns that folder.

    One file is one document; about a twentieth of the files is held out. The folder appears at once, complete: of
    several processes doing this at a time, one wins and all return the same. `announce` is called with a
    message before the work, where there is some.
    """
    final = folder / f"stdlib-{platform.python_version()}-byte"
    if (final / REPORT_NAME).is_file():
        return final
    sources = standard_library_sources()
    megabytes = sum(source.size for source in sources.files) / 1e6
    announce(f"preparing {megabytes:.0f} MB of the Python standard library's sources in {final}: some seconds, once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}-", dir=folder))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    try:
        temporary.chmod(0o755)  # mkdtemp makes it private
        prepare(sources, temporary, valid_fraction=0.05)
        os.rename(temporary, final)
    except OSError as error:
        if not (final / REPORT_NAME).is_file():
            raise UserError(f"cannot write {final}: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final
