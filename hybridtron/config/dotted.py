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


def with_value_at(mapping: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy of nested mappings with a dotted key set; mappings that are missing on the way are made."""
    first, _, rest = key.partition(".")
    if rest:
        inner = mapping.get(first)
        value = with_value_at(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**mapping, first: value}
