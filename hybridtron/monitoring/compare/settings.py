"""Settings that are not equal in all runs, by dotted key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hybridtron.config.flat import flat

ENVIRONMENT = ("hybridtron", "git_hash", "device", "packages", "layout.world_size")  # of environment.json
LEFT_OUT = ("name", "folder")  # names and places, which every run has of its own

Value = Any  # None where a run does not have the key


def settings_of(
    config: Mapping[str, Any], environment: Mapping[str, Any], blocks: Mapping[str, Mapping[str, Any]] | None
) -> dict[str, Value]:
    """Return the settings of a run by dotted key.

    Args:
        config: config.yaml, resolved where that is possible.
        environment: environment.json, of which versions, the device and the number of processes are taken.
        blocks: the blocks that a layer uses, each with the keys that are not at their default; None: not known.
    """
    found = {key: value for key, value in _by_element(flat(config)).items() if key not in LEFT_OUT}
    if blocks is not None:
        used = tuple(f"model.blocks.{name}." for name in blocks)
        unused = {key for key in found if key.startswith("model.blocks.") and not key.startswith(used)}
        found = {key: value for key, value in found.items() if key not in unused}
    recorded = flat({key: environment[key] for key in ("layout", *ENVIRONMENT) if key in environment})
    for key, value in recorded.items():
        if any(f"{key}.".startswith(f"{name}.") for name in ENVIRONMENT):
            found[f"environment.{key}"] = value
    return found


def _by_element(settings: Mapping[str, Value]) -> dict[str, Value]:
    """Return settings with those in lists of mappings, such as sources of data, by element: LIST[0].KEY."""
    found: dict[str, Value] = {}
    for key, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(element, Mapping) for element in value):
            for position, element in enumerate(value):
                found |= flat(element, f"{key}[{position}]")
        else:
            found[key] = value
    return found


def differences(
    settings: Sequence[Mapping[str, Value]],
    fingerprints: Sequence[Mapping[str, Any]],
    blocks: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict[str, list[Value]]:
    """Return the keys whose values are not equal in all runs, with the value of each run.

    Paths of tokens are equal where `fingerprints` (of environment.json) say that what they hold is. A block that some
    run does not use is one entry, `model.blocks.NAME`: its type and the keys that are not at their default.
    """
    names = list(dict.fromkeys(name for some in blocks for name in some))
    partly = [name for name in names if not all(name in some for some in blocks)] if all(blocks) else []
    found: dict[str, list[Value]] = {}
    for key in dict.fromkeys(key for some in settings for key in some):
        if any(key.startswith(f"model.blocks.{name}.") for name in partly):
            name = key.split(".")[2]
            found.setdefault(f"model.blocks.{name}", [some.get(name) for some in blocks])
            continue
        if any(some.get(key) in ([], {}) for some in settings) and any(_has_part(some, key) for some in settings):
            continue  # the rows of its parts tell
        values = [some.get(key) for some in settings]
        if all(value == values[0] for value in values[1:]):
            continue
        held = [some.get(key) for some in fingerprints]
        if None in held or any(value != held[0] for value in held):
            found[key] = values
    return found


def _has_part(settings: Mapping[str, Value], key: str) -> bool:
    """Return whether settings have a key below this one."""
    return any(name.startswith((f"{key}.", f"{key}[")) for name in settings)
