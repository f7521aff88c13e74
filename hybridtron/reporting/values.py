"""Plain values, such as settings read from JSON, as HTML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hybridtron.reporting.numbers import NONE, html_number
from hybridtron.reporting.page import blocks, join, raise_exponents
from hybridtron.reporting.table import Column, Table

LONG_LIST = 12  # longer lists of numbers are folded away


def html_values(values: Mapping[str, Any]) -> Markup:
    """Render a mapping as a table of names and values, with a table of its own for each list of mappings.

    Names of nested mappings stand before the names in them.
    """
    flat, tables = [], []
    for name, value in _flatten(values):
        if _is_table(value) and (len(value) > 1 or not name):
            tables.append(blocks.heading(name) + records_table(value))
        else:
            flat.append((name, _html_value(value)))
    return join([Table.from_rows(("", ""), flat).to_html(), *tables])


def records_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Render mappings as a table with a column per name; the value of `NAME_interval` stands small below `NAME`."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if name.removesuffix("_interval") not in {*names} - {name}]
    return Table([Column(words(name), [_with_interval(row, name) for row in rows]) for name in names]).to_html()


def words(key: object) -> str:
    """Return a key in words; a symbol such as k_N stays as it is."""
    text = str(key)
    return text if any(len(part) == 1 for part in text.split("_")) else text.replace("_", " ")


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in values.items():
        name = f"{path} {words(key)}".strip()
        if not isinstance(item, Mapping) or not item:
            yield name, item or None if isinstance(item, Mapping) else item
        elif len(item) > 1 and _is_table(list(item.values())) and len({tuple(row) for row in item.values()}) == 1:
            yield name, [{words(key): words(inner), **row} for inner, row in item.items()]
        else:
            yield from _flatten(item, name)


def _is_table(value: Any) -> bool:
    """Return whether this is a list of mappings that hold no further mappings."""
    return (
        isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(row, Mapping) and row for row in value)
        and not any(isinstance(cell, Mapping) or _is_table(cell) for row in value for cell in row.values())
    )


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    value, interval = _html_value(row.get(name, "")), row.get(f"{name}_interval")
    return Markup("{}\n{}").format(value, _html_value(interval)) if interval else value


def _html_value(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = (Markup("{} {}").format(words(key), _html_value(item)) for key, item in value.items())
        return join(pairs, ", ") or NONE
    if not isinstance(value, list | tuple):
        return raise_exponents(value) if isinstance(value, str) else html_number(value)
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        nested = any(isinstance(item, Mapping | list | tuple) for item in value)
        return join(map(_html_value, value), "<br>" if nested else ", ")
    numbers = join(map(html_number, value), " to " if len(value) == 2 else ", ") or NONE
    return blocks.folded(f"{len(value)} numbers", numbers) if len(value) > LONG_LIST else numbers
