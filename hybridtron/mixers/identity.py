"""What of a block decides whether results are those of the same run: its keys, without later ones at their default.

A study, a search and MAD know results by a hash of the keys. A key that a type of block gets later must not part older
results, so at its default it is left out. Types name their `first_keys`, which are never left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hybridtron.mixers.registry import MIXERS

OF_ALL = ("type", "hidden_size", "norm_position")


def block_identity(block: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a block, `type` among them, that decide results; those of its branches likewise."""
    kept = {key: value for key, value in block.items() if not _is_later(block, key, value)}
    if "branches" in kept:
        kept["branches"] = [block_identity(branch) for branch in kept["branches"]]
    return kept


def _is_later(block: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether a key of a known type came later, and has its default."""
    mixer = MIXERS.get(block.get("type", ""))
    if mixer is None or mixer.first_keys is None or key in (*OF_ALL, *mixer.first_keys.split()):
        return False
    field = mixer.model_fields.get(key)
    return field is not None and value == field.get_default(call_default_factory=True)
