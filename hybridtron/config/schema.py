"""The base class of every config section, and what its validators raise and call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
from pydantic import AfterValidator, ConfigDict
from pydantic_core import CoreSchema, PydanticCustomError

from hybridtron.config.nearest import nearest, one_of

PROBLEM = "problem"  # error types that explain.py knows
DISPATCHED = "dispatched"


LARGEST = {"int": 2**63 - 1, "float": 1e100}  # products of a few numbers of a config are still numbers


def _adapt(schema: Any, bounded: bool = True) -> None:
    """Accept lists as tuples, and outside unions, whose errors are told by type, no number larger than LARGEST."""
    if isinstance(schema, dict):
        kind = schema.get("type")
        if kind == "tuple":
            schema["strict"] = False
        elif bounded and isinstance(kind, str) and kind in LARGEST and "lt" not in schema:
            schema.setdefault("le", LARGEST[kind])
        for part in schema.values():
            _adapt(part, bounded and kind != "union")
    elif isinstance(schema, list | tuple):
        for part in schema:
            _adapt(part, bounded)


class Strict(pydantic.BaseModel):
    """A frozen config section that accepts exactly its fields with exactly their types.

    A whole number may stand for a float, and a list for a tuple, which YAML lacks. Nothing else is converted: "true" is
    no bool, true and 1.5 are no int, infinity and NaN are no float. Choices are written as Literal, not as Enum.
    Numbers are at most LARGEST.
    Fields marked `exclude=True` are set by the code around the section: they are not written, documented or suggested.
    """

    KEYS_OF_OTHERS: ClassVar[Mapping[str, str]] = {}  # keys that belong elsewhere -> where, for the message
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: pydantic.GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _adapt(schema)
        return schema


def problem(key: str, value: object, expected: str) -> Exception:
    """Build an exception for validators to raise; it is printed as `PLACE.KEY = VALUE: expected EXPECTED (in FILE)`.

    `key` is relative to what is being validated: "" for the field of a field validator or the whole model of a model
    validator, else a key below it, with dots between levels and `[0]` for an entry of a list.
    """
    return PydanticCustomError(PROBLEM, "expected {expected}", {"key": key, "value": value, "expected": expected})


def _usable_as_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise problem("", name, "letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return name


FolderName = Annotated[str, AfterValidator(_usable_as_folder)]
S = TypeVar("S", bound=Strict)


def dispatch(value: Any, registry: Mapping[str, type[S]], key: str = "type") -> S:
    """Build the class that `value[key]` names in `registry`; for a BeforeValidator where the class varies.

    ::

        Block = Annotated[MixerConfig, BeforeValidator(lambda value: dispatch(value, MIXERS))]

    Every class declares `key` as a field. An instance passes as it is. Raises a `problem` for a missing or unknown
    name, and for bad fields an error that carries the class, so that nearest names are those of that class.
    """
    if isinstance(value, Strict):
        return value  # type: ignore[return-value]  # the field's own type is checked next
    if not isinstance(value, Mapping):
        close = nearest(value, registry) if isinstance(value, str) else None
        raise problem("", value, "a mapping" + (f", such as {{{key}: {close}}}" if close else ""))
    if key not in value:
        raise PydanticCustomError(
            PROBLEM,
            "required key is missing: expected {expected}",
            {"key": key, "missing": True, "expected": one_of(None, registry)},
        )
    name = value[key]
    if not isinstance(name, str) or name not in registry:
        raise problem(key, name, one_of(name, registry))
    chosen = registry[name]
    try:
        return chosen.model_validate(value)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)
        context = {"class": chosen, "errors": errors, "summary": f"{chosen.__name__}: {errors[0]['msg']}"}
        raise PydanticCustomError(DISPATCHED, "{summary}", context) from None
