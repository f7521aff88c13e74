"""Imports of large packages in less time."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Import inside the block without garbage collection, which would look at all new modules again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def freeze_imported() -> None:
    """Leave what was imported out of garbage collections, also of the one at the end.

    Not where Triton was imported, which would report its frozen objects as leaks at the end.
    """
    if "triton" not in sys.modules:
        gc.freeze()


@contextlib.contextmanager
def hidden(*modules: str) -> Iterator[None]:
    """Make imports of these modules fail inside the block, unless they are imported already."""
    absent = [name for name in modules if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
