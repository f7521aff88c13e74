"""Types, bounds and values in the words of a YAML author."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel
from yaml import YAMLError

from hybridtron.config import yaml_text

_MAX_VALUE = 60  # characters of a value inside a message
_SCALARS: Mapping[Any, tuple[str, str]] = {  # one, several
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    bool: ("true or false", "true or false"),
    str: ("text", "texts"),
    type(None): ("null", "nulls"),
    Any: ("anything", "values"),
}
_NUMERALS = {1: "one", 2: "two", 3: "three", 4: "four"}


def value_text(value: Any) -> str:
    """Write a value as YAML on one line, text in quotes; cut short where it is long."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, str):
        text = f"'{value}'" if "'" not in value else f'"{value}"'
    else:
        try:
            text = yaml_text.write_inline(value)
        except YAMLError:  # an object that YAML cannot say, from a Python caller
            text = repr(value)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 3]}..."


def type_words(annotation: Any) -> str:
    """Describe a type, to follow "expected": `a whole number`, `a list of two numbers`, `text or null`."""
    annotation = unannotated(annotation)
    if annotation in _SCALARS:
        return _SCALARS[annotation][0]
    choices = literal_choices(annotation)
    if choices:
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if is_union(annotation):
        return " or ".join(dict.fromkeys(type_words(member) for member in get_args(annotation)))
    items = list_items(annotation)
    if items is not None:
        return f"a list of {_several(*items)}"
    if get_origin(annotation) is dict or annotation is dict or is_model(annotation):
        return "a mapping"
    return getattr(annotation, "__name__", str(annotation))


def bounds_words(metadata: Iterable[Any]) -> list[str]:
    """Describe the constraints in a pydantic field's metadata: `at least 1`, `less than 2` ..."""
    words = {
        "ge": "at least {}",
        "gt": "more than {}",
        "le": "at most {}",
        "lt": "less than {}",
        "multiple_of": "a multiple of {}",
        "min_length": "length at least {}",
        "max_length": "length at most {}",
        "pattern": "matching `{}`",
    }
    found = []
    for constraint in metadata:
        for name, text in words.items():
            bound = getattr(constraint, name, None)
            if bound is not None:
                found.append(text.format(number_text(bound)))
    return found


def number_text(bound: Any) -> str:
    """Write a bound without a needless fraction: 0 for 0.0."""
    return str(int(bound)) if isinstance(bound, float) and bound.is_integer() else str(bound)


def unannotated(annotation: Any) -> Any:
    """Return the type inside Annotated[...]."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def is_model(annotation: Any) -> TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def union_members(annotation: Any) -> list[Any]:
    """Return the members of a union without null, nested unions flattened; any other type is its only member."""
    annotation = unannotated(annotation)
    if not is_union(annotation):
        return [annotation]
    members = [member for member in get_args(annotation) if member is not type(None)]
    return [inner for member in members for inner in union_members(member)]


def literal_choices(annotation: Any) -> list[str]:
    """Return the choices of a Literal as YAML; empty for other types."""
    annotation = unannotated(annotation)
    values = get_args(annotation) if get_origin(annotation) is Literal else ()
    return [yaml_text.write_inline(value) for value in values]


def list_items(annotation: Any) -> tuple[Any, int | None] | None:
    """Return item type and fixed length (None: any) of a list or tuple type; None for other types."""
    annotation = unannotated(annotation)
    origin = get_origin(annotation) or annotation
    if origin not in (list, tuple, set, frozenset, Sequence):
        return None
    arguments = get_args(annotation)
    if not arguments:
        return Any, None
    if origin is tuple and arguments[-1] is not Ellipsis:
        return (arguments[0] if len(set(arguments)) == 1 else Any), len(arguments)
    return arguments[0], None


def _several(item: Any, length: int | None) -> str:
    item = unannotated(item)
    if item in _SCALARS:
        words = _SCALARS[item][1]
    elif literal_choices(item):
        words = f"values, each {type_words(item)}"
    elif list_items(item) is not None:
        words = f"lists of {_several(*(list_items(item) or (Any, None)))}"
    else:
        words = "mappings" if type_words(item) == "a mapping" else f"values, each {type_words(item)}"
    return words if length is None else f"{_NUMERALS.get(length, length)} {words}"
