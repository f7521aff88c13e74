"""Values of nested mappings by dotted key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def value_at(mapping: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key in nested mappings; None where it is missing."""
    node: Any = mapping
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node
