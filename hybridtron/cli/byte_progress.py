"""The progress of a conversion in bytes, on standard error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

MIB = 2**20


@contextlib.contextmanager
def byte_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of the block, which calls the function with the bytes done and those of all."""
    from hybridtron.reporting.numbers import byte_size
    from hybridtron.reporting.progress import ProgressView

    view = ProgressView()

    def update(done: int, total: int) -> None:
        text = f"{name}  {byte_size(done)} of {byte_size(total)}"
        view.update(name, done // MIB, total // MIB, "MiB", text)

    try:
        yield update
    finally:
        view.close()
