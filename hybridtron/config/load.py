"""From YAML to a typed config and back."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import pydantic

from hybridtron.config import yaml_text
from hybridtron.config.compose import Provenance, compose
from hybridtron.config.explain import explain
from hybridtron.config.schema import Strict
from hybridtron.config.type_words import value_text
from hybridtron.errors import UserError

_MAX_LINES = 5

S = TypeVar("S", bound=Strict)


def load(config: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str], schema: type[S]) -> S:
    """Read the config in a YAML file or a mapping like one, with its bases and `dotted.key=value` overrides.

    Raises UserError, one line per problem: `key = value: expected what (nearest: name) (in FILE)`.
    """
    composed = compose(config, overrides)
    return build(composed.mapping, schema, composed.provenance)


def build(mapping: Mapping[str, Any], schema: type[S], provenance: Provenance | None = None) -> S:
    """Build the config of a plain mapping. Raises UserError as `load` does, five problems at most."""
    if not isinstance(mapping, Mapping):
        raise UserError(f"expected a mapping of keys at the top level, found {value_text(mapping)}")
    _require_usable_text(mapping, "", provenance)
    try:
        return schema.model_validate(dict(mapping))
    except pydantic.ValidationError as error:
        lines = explain(error, schema, provenance)
    if len(lines) > _MAX_LINES:
        lines[_MAX_LINES:] = [f"and {len(lines) - _MAX_LINES} more"]
    raise UserError("\n".join(lines))


def _require_usable_text(value: Any, key: str, provenance: Provenance | None) -> None:
    """Raise UserError for a text with a NUL, which can be in no path."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _require_usable_text(inner, f"{key}.{name}" if key else str(name), provenance)
    elif isinstance(value, str) and "\0" in value:
        suffix = provenance.suffix(key) if provenance else ""
        raise UserError(f"{key} = {value!r}: expected text without a NUL character{suffix}")


def dump(config: Strict) -> str:
    """Write the config as YAML in the order of its fields; `build(yaml_text.parse(dump(x)), type(x)) == x`.

    Fields marked `exclude=True` are left out.
    """
    return yaml_text.write(config.model_dump(mode="json", serialize_as_any=True))
