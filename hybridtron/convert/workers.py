"""Convert several pieces at a time, so that reading, checksums and writing keep all cores busy."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
WORKERS = min(4, (os.cpu_count() or 1) + 1)  # each holds a piece; one more than there are cores, since some wait


def for_each(function: Callable[[Item], None], items: Iterable[Item]) -> None:
    """Call a function for each item, in threads and about in order. Raises what the first call that fails raises."""
    with ThreadPoolExecutor(WORKERS) as pool:
        for _ in pool.map(function, items):
            pass
