"""pydantic's validation errors in one line each: `key = value: what was expected (nearest: name) (in FILE)`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args, get_origin

import pydantic

from hybridtron.config.compose import Provenance
from hybridtron.config.nearest import nearest, one_of
from hybridtron.config.schema import DISPATCHED, PROBLEM
from hybridtron.config.type_words import (
    is_model,
    list_items,
    literal_choices,
    number_text,
    type_words,
    union_members,
    value_text,
)
from hybridtron.errors import UserError

_MISSING = "required key is missing"
_WRONG_TYPE = re.compile(  # pydantic's error types
    r"(int|float|bool|string|list|tuple|set|dict|mapping|model)_(attributes_)?(type|parsing|from_float)"
    r"|none_required|literal_error"
)
_BOUNDS = {  # pydantic's error type -> words with the names of its context
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "multiple_of": "a multiple of {multiple_of}",
    "finite_number": "a finite number",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text matching {pattern}",
    "too_short": "a length of at least {min_length}",
    "too_long": "a length of at most {max_length}",
}

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class _Place:
    """Where an error is: the path as the YAML author sees it, the type there, and the class that has the last key."""

    path: Path
    annotation: Any
    owner: type[pydantic.BaseModel] | None
    within: Any = None  # the type that has the last key
    union: Path | None = None  # path of the union of several types on the way, of which this is one reading


@dataclass(frozen=True)
class _Problem:
    path: Path
    text: str  # what follows the key; "expected ..." or another sentence
    value: str = ""
    more_lines: tuple[str, ...] = ()
    union: Path | None = None
    renamed: Path | None = None  # the key that an unknown one most probably was meant to be


def explain(
    error: pydantic.ValidationError, schema: type[pydantic.BaseModel], provenance: Provenance | None = None
) -> list[str]:
    """Return one line for each error of `schema`; indented lines that show it may follow.

    Keys of which there is nothing to say but that they are missing share one line.
    """
    problems = _joined(list(_problems(error.errors(include_url=False), schema, (), schema)))
    meant = {problem.renamed for problem in problems}
    shown = [problem for problem in problems if not (problem.text.startswith(_MISSING) and problem.path in meant)]
    missing = [problem for problem in shown if problem.text == _MISSING]
    if len(missing) > 1:
        keys = ", ".join(dotted(problem.path) for problem in missing)
        shown[shown.index(missing[0])] = _Problem((), f"required keys are missing: {keys}")
        shown = [problem for problem in shown if problem not in missing]
    return [_line(problem, provenance) for problem in shown]


def _line(problem: _Problem, provenance: Provenance | None) -> str:
    key = dotted(problem.path)
    text = problem.text
    if key:
        text = f"{key} = {problem.value}: {text}" if problem.value else f"{key}: {text}"
    suffix = "" if provenance is None else provenance.suffix(".".join(p for p in problem.path if isinstance(p, str)))
    return "\n".join((text + suffix, *problem.more_lines))


def dotted(path: Path) -> str:
    """Write a path as a key: `stages[0].lr` for ("stages", 0, "lr")."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")


def _problems(
    errors: Sequence[Any], schema: type[pydantic.BaseModel], prefix: Path, root: type[pydantic.BaseModel]
) -> Iterator[_Problem]:
    for error in errors:
        place = _place(schema, error["loc"])
        place = replace(place, path=prefix + place.path, union=None if place.union is None else prefix + place.union)
        if error["type"] == DISPATCHED:
            yield from _problems(error["ctx"]["errors"], error["ctx"]["class"], place.path, root)
        else:
            yield replace(_problem(error, place, root), union=place.union)


def _problem(error: Any, place: _Place, root: type[pydantic.BaseModel]) -> _Problem:
    kind, context, path = error["type"], error.get("ctx", {}), place.path
    shown = value_text(error["input"])
    if kind == "extra_forbidden":
        return _unknown_key(place, root)
    if kind == "missing" and isinstance(path[-1], str):
        choices = literal_choices(place.annotation)
        return _Problem(path, _MISSING + (f": expected {one_of(None, choices)}" if choices else ""))
    if kind == "missing":  # of a list with a fixed number of entries
        return _Problem(path[:-1], f"expected {type_words(place.within)}", shown)
    if kind == PROBLEM:
        path += tuple(int(part[1:-1]) if part.startswith("[") else part for part in context["key"].split(".") if part)
        if context.get("missing"):
            return _Problem(path, f"{_MISSING}: expected {context['expected']}")
        return _Problem(path, f"expected {context['expected']}", value_text(context["value"]))
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        key = context["discriminator"].strip("'")
        if kind == "union_tag_not_found":
            return _Problem((*path, key), f"{_MISSING}: expected {one_of(None, _tags(place.annotation, key))}")
        tags = _tags(place.annotation, key)
        return _Problem((*path, key), f"expected {one_of(context['tag'], tags)}", value_text(context["tag"]))
    if kind in ("value_error", "assertion_error"):
        return _from_exception(context["error"], place, shown)
    if kind == "too_long" and (list_items(place.annotation) or (None, None))[1] is not None:
        return _Problem(path, f"expected {type_words(place.annotation)}", shown)
    if _WRONG_TYPE.fullmatch(kind) and place.annotation is not None:
        choices = [choice for member in union_members(place.annotation) for choice in literal_choices(member)]
        if kind == "literal_error" and choices and isinstance(error["input"], str):
            return _Problem(path, f"expected {one_of(error['input'], choices)}", shown)
        return _Problem(path, f"expected {type_words(place.annotation)}", shown)
    if kind in _BOUNDS:
        bounds = {name: number_text(bound) for name, bound in context.items()}
        return _Problem(path, f"expected {_BOUNDS[kind].format(**bounds)}", shown)
    return _Problem(path, error["msg"][:1].lower() + error["msg"][1:], shown)


def _unknown_key(place: _Place, root: type[pydantic.BaseModel]) -> _Problem:
    *parents, key = place.path
    valid = _keys(place.owner) if place.owner else []
    elsewhere = [path for path in _paths(root) if path[-1] == key]
    close = nearest(str(key), valid)
    if key in ("type", "name", "kind") and place.owner and parents:  # asks what the section is, which is fixed
        about = " ".join((place.owner.__doc__ or "").partition("\n\n")[0].split()).removesuffix(".")
        return _Problem(place.path, f"unknown key: expected {one_of(None, valid)} ({parents[-1]}: {about})")
    if belongs := getattr(place.owner, "KEYS_OF_OTHERS", {}).get(str(key)):
        return _Problem(place.path, f"unknown key: {belongs}")
    if len(elsewhere) == 1:
        return _Problem(place.path, f"unknown key (nearest: {dotted(elsewhere[0])})", renamed=elsewhere[0])
    if close:
        return _Problem(place.path, f"unknown key (nearest: {close})", renamed=(*parents, close))
    return _Problem(place.path, f"unknown key: expected {one_of(None, valid)}")


def _from_exception(error: Exception, place: _Place, shown: str) -> _Problem:
    """Convert a validator's ValueError. A UserError's text may begin with the key it is about: `mtp.pattern`."""
    first, *more = str(error).split("\n")
    path = place.path
    is_section = is_model(place.annotation)
    if isinstance(error, UserError):
        head, colon, rest = first.partition(": ")
        if colon and is_section and head.partition(".")[0] in place.annotation.model_fields:
            return _Problem((*path, *head.split(".")), rest, "", tuple(more))
        if colon and path and head == path[-1]:
            return _Problem(path, rest, "", tuple(more))
    return _Problem(path, first, "" if is_section else shown, tuple(more))


def _joined(problems: list[_Problem]) -> list[_Problem]:
    """Merge the problems of a union's members into one for its value."""
    result: list[_Problem] = []
    for problem in problems:
        if problem.union is None:
            result.append(problem)
            continue
        readings = [other for other in problems if other.union == problem.union]
        if problem is not readings[0]:
            continue
        deeper = [reading for reading in readings if len(reading.path) > len(problem.union)]
        if deeper:  # one type has the right shape: what is wrong inside it
            result.append(deeper[0])
        else:
            wanted = dict.fromkeys(reading.text.removeprefix("expected ") for reading in readings)
            result.append(replace(problem, text=f"expected {' or '.join(wanted)}"))
    return result


def _place(schema: type[pydantic.BaseModel], location: Sequence[str | int]) -> _Place:
    """Follow pydantic's location, which names union members as if they were keys, through the schema's types."""
    place = _Place((), schema, None)
    for part in location:
        members = union_members(place.annotation)
        here = members[0] if len(members) == 1 else None
        if part == "[key]":  # the key just passed is wrong, not its value
            place = replace(place, annotation=get_args(place.within)[0] if get_args(place.within) else None)
        elif len(members) > 1:
            tagged = any(part in _literals(member) for member in members)
            union = place.union if tagged or place.union is not None else place.path
            place = _Place(place.path, _member(members, part), place.owner, place.within, union)
        elif is_model(here):
            field = here.model_fields.get(str(part))
            place = _Place((*place.path, part), field.annotation if field else None, here, here, place.union)
        elif get_origin(here) is dict:
            place = _Place((*place.path, part), get_args(here)[1], None, here, place.union)
        else:
            items = list_items(here)
            place = _Place((*place.path, part), items[0] if items else None, None, here, place.union)
    return place


def _member(members: Sequence[Any], label: str | int) -> Any:
    """Return the member of a union that pydantic calls `label`: `int`, `list[int]`, a tag; None if unknown."""
    name = str(label).partition("[")[0].lower()
    return next((m for m in members if label in _literals(m) or getattr(m, "__name__", "").lower() == name), None)


def _literals(member: Any) -> list[str]:
    """Return the fixed values of a model's Literal fields, one of which pydantic uses to name it in a union."""
    if not is_model(member):
        return []
    return [choice for field in member.model_fields.values() for choice in literal_choices(field.annotation)]


def _tags(annotation: Any, key: str) -> list[str]:
    fields = [model.model_fields.get(key) for model in union_members(annotation) if is_model(model)]
    return [tag for field in fields if field for tag in literal_choices(field.annotation)]


def _keys(model: type[pydantic.BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _paths(model: type[pydantic.BaseModel], prefix: Path = (), seen: tuple[type, ...] = ()) -> Iterator[Path]:
    """Yield every key of the sections below `model` that have one fixed place."""
    for name in _keys(model):
        yield (*prefix, name)
        section = model.model_fields[name].annotation
        if is_model(section) and section not in seen:
            yield from _paths(section, (*prefix, name), (*seen, model))
