"""The Markdown page of all config keys, made from the schemas."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from hybridtron.config import yaml_text
from hybridtron.config.schema import Strict
from hybridtron.config.type_words import (
    bounds_words,
    is_model,
    list_items,
    literal_choices,
    type_words,
    unannotated,
    union_members,
)

_OR_NULL = " or null"
_PARAGRAPH = "\n\n"

Registry = Mapping[str, type[Strict]]


def render(
    schema: type[Strict],
    title: str,
    intro: str,
    dynamic: Mapping[str, Registry] | None = None,
    sections: Sequence[tuple[str, str]] = (),
) -> str:
    """Return Markdown with one table per section: key, type and bounds, default, description.

    Args:
        schema: the class of the whole config.
        title, intro: heading and text before the tables.
        dynamic: for each key whose value is built by `dispatch`, such as "model.blocks", the classes by `type`.
        sections: heading and text of further chapters, after the tables.

    Raises ValueError if `dynamic` names a key that the schema does not have.
    """
    dynamic = dict(dynamic or {})
    chapters = [f"# {title}", intro.strip(), *_chapters(schema, "", "Top level", dynamic, ())]
    if dynamic:
        raise ValueError(f"no such key in {schema.__name__}: {', '.join(dynamic)}")
    chapters += [f"## {heading}\n\n{text.strip()}" for heading, text in sections]
    return "\n\n".join(chapter for chapter in chapters if chapter) + "\n"


def _chapters(
    model: type[Strict], key: str, heading: str, dynamic: dict[str, Registry], outer: tuple[type, ...]
) -> Iterator[str]:
    """Yield the chapter of one section, then those of the sections inside it; removes from `dynamic` what it uses."""
    if any(issubclass(section, model) for section in outer):  # a section inside its own kind
        return
    fields = {name: field for name, field in model.model_fields.items() if not field.exclude}
    rows = [_row(name, field, f"{key}.{name}".removeprefix(".")) for name, field in fields.items()]
    table = "\n".join(("| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows))
    level = "#" * min(4, max(2, 1 + len(outer)))
    yield "\n\n".join(part for part in (f"{level} {heading}", _docstring(model), table if rows else "No keys.") if part)
    for name, field in fields.items():
        inner = f"{key}.{name}".removeprefix(".")
        if inner in dynamic:
            yield _contents(_inner(field.annotation, inner)[0], dynamic[inner])
    for name, field in fields.items():
        inner = f"{key}.{name}".removeprefix(".")
        place, models = _inner(field.annotation, inner)
        sections = {"": models[0]} if len(models) == 1 else {_label(section): section for section in models}
        if inner in dynamic:
            sections = {_type_label(name): section for name, section in dynamic.pop(inner).items()}
        for label, section in sections.items():
            yield from _chapters(section, place, f"`{place}`{label}", dynamic, (*outer, model))


def _type_label(name: str) -> str:
    return f" with `type: {name}`"


def _contents(place: str, registry: Registry) -> str:
    """Return a table of the types of `place`, with links to their chapters and what each of them is."""
    rows = []
    for name, section in registry.items():
        anchor = re.sub(r"[^\w\s-]", "", f"{place}{_type_label(name)}").lower().replace(" ", "-")
        rows.append(f"| [`{name}`](#{anchor}) | {_cell(_docstring(section).partition(_PARAGRAPH)[0])} |")
    return "\n".join((f"The types of `{place}`:", "", "| `type` | |", "|---|---|", *rows))


def _row(name: str, field: FieldInfo, key: str) -> str:
    _, models = _inner(field.annotation, key)
    words = type_words(field.annotation)
    bounds = bounds_words(field.metadata)
    if bounds:
        optional = words.endswith(_OR_NULL)
        words = ", ".join((words.removesuffix(_OR_NULL), *bounds)) + (f",{_OR_NULL}" if optional else "")
    if get_origin(unannotated(field.annotation)) is dict:
        words = "a mapping of names to " + ("mappings" if models else type_words(get_args(field.annotation)[1]))
    description = field.description or ""
    if not description and len(models) == 1:
        description = _docstring(models[0]).partition("\n\n")[0]
    if not description and literal_choices(field.annotation):
        description = "Chooses this table's keys."
    return f"| `{name}` | {_cell(words)} | {_default(field)} | {_cell(description)} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if isinstance(value, Strict):
        return "its defaults"
    if value is PydanticUndefined:
        return ""
    text = yaml_text.write_inline(value)
    return f"`{_cell(text)}`"


def _inner(annotation: Any, key: str) -> tuple[str, list[type[Strict]]]:
    """Return the sections in a value of this type, and the key of one of them: `key`, `key.NAME` or `key[]`."""
    members = union_members(annotation)
    models = [member for member in members if is_model(member) and issubclass(member, Strict)]
    lists = [member for member in members if list_items(member) is not None]
    if not models and len(members) > 1 and len(lists) == 1:  # such as text or a list of sections
        members = lists
    if models or len(members) != 1:
        return key, models
    items = list_items(members[0])
    if get_origin(members[0]) is dict:
        return _inner(get_args(members[0])[1], f"{key}.NAME")
    if items is not None:
        return _inner(items[0], f"{key}[]")
    return key, []


def _label(model: type[Strict]) -> str:
    """Return the heading of a union's member: its first Literal field."""
    for name, field in model.model_fields.items():
        choices = literal_choices(field.annotation)
        if choices:
            return " with " + " or ".join(f"`{name}: {choice}`" for choice in choices)
    return f" ({model.__name__})"


def _docstring(model: type[Strict]) -> str:
    return inspect.cleandoc(model.__dict__.get("__doc__") or "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
