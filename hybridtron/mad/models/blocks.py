"""Changes to blocks as configs write them, mixer by mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BlockKeys = dict[str, Any]


def map_mixers(block: BlockKeys, change: Callable[[BlockKeys], BlockKeys]) -> BlockKeys:
    """Return the block changed by `change`: its branches, where it has any, else itself."""
    if "branches" in block:
        return {**block, "branches": [map_mixers(branch, change) for branch in block["branches"]]}
    return change(block)
